"""Native CPU kernels: what Paddle's own elementwise, reduction and slicing kernels take most of a step for.

The library is C++ that is built once per machine (:mod:`.library`); its prototypes are read from ``interface.h``
(:mod:`.prototypes`). The other modules make functions of Paddle tensors of it, each with its gradient; they take
float32 on the CPU, and which of them is used is chosen in :mod:`ppsd3.ops.dispatch`. Gradients are of first order: wrap
code that differentiates a gradient in ``use_native(False)``.
"""

import ctypes
import threading
from typing import Any, Optional

from .. import settings
from . import library as _library
from .prototypes import declare

_lock = threading.Lock()
_loaded: Any = None  # (ctypes.CDLL or None, path or reason) once tried


def status() -> tuple[bool, str]:
    """Whether native kernels are in use, and the library's path, or why they are not."""
    if settings.current().level != "native":
        return False, f"turned off by use_kernels({settings.current().level!r})"
    library, detail = load()
    return library is not None, detail


def lib() -> ctypes.CDLL:
    """The loaded library; call only where the feature ``kernels`` is there."""
    return _loaded[0]


def load() -> tuple[Optional[ctypes.CDLL], str]:
    """(library or None, its path or why there is none). Builds it if nobody has asked yet."""
    global _loaded
    with _lock:  # what cannot be cached would else be built by each thread
        if _loaded is None:
            library, detail = _library.load()
            if library is not None:
                declare(library)
            _loaded = library, detail
    return _loaded
