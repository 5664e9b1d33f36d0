"""Errors, files, the hub, random numbers, CPU threads, types: what does not depend on Paddle's layers.

Names that programs import from ``diffusers.utils`` come from the modules here when they are asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import logging as logging
    from .images import load_image as load_image, make_image_grid as make_image_grid
    from .random import randn_tensor as randn_tensor

_NAMES = {"load_image": "images", "make_image_grid": "images", "randn_tensor": "random"}


def __getattr__(name: str) -> Any:
    if name == "logging":
        return importlib.import_module(".logging", __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    from .elsewhere import NAMES, explain
    from .errors import UnknownNameError

    raise UnknownNameError(explain(__name__, name, ["logging", *_NAMES], NAMES))
