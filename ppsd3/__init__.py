"""Stable Diffusion 3 and 3.5 on PaddlePaddle.

The public names are imported when they are first used, so ``import ppsd3`` costs little more than ``import paddle``
and changes nothing of the process. The first model that is built does: :func:`ppsd3.tune_process`.
"""

import ast
import importlib
import pathlib

# Paddle 2.6 exports symbols of a zlib of its own. A system zlib that is loaded after it calls into them, and saving a
# PNG crashes; one that is loaded before it does not.
import zlib  # noqa: F401

from .utils.device import import_paddle
from .utils.elsewhere import NAMES, answer_imports, explain
from .utils.errors import UnknownNameError

__version__ = "0.1.0"


def _public_names():
    """{name: module} of what ``__init__.pyi`` imports. Type checkers read that file, so it alone lists the names."""
    stub = ast.parse(pathlib.Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    return {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}


_PUBLIC = _public_names()

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name):
    if name not in _PUBLIC:
        raise UnknownNameError(explain("ppsd3", name, _PUBLIC, NAMES))
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_PUBLIC})


import_paddle()
answer_imports()
