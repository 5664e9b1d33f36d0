"""Native CPU kernels: what Paddle's own elementwise, reduction and slicing kernels take most of a step for.

Used without being asked for when tensors are float32 on CPU, in dynamic mode without AMP, and the library can be
built (:mod:`.library`); otherwise every function of :mod:`ppsd3.ops` computes the same with Paddle alone. Gradients are
of first order: wrap code that differentiates a gradient in ``use_native(False)``.
"""

from ..shapes import plain_on_cpu
from . import library as _library

_enabled = True
_loaded = None  # (ctypes.CDLL or None, path or reason) once tried


class use_native:
    """Chooses whether native kernels may be used, from the call on; as a context manager, until its end.

    Args:
        enabled (bool): False computes everything with Paddle; True (the initial state) uses what is available.
    """

    def __init__(self, enabled):
        global _enabled
        self._before, _enabled = _enabled, bool(enabled)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        global _enabled
        _enabled = self._before


def status():
    """Whether native kernels are in use, and the library's path, or why they are not.

    Returns:
        (bool, str).
    """
    lib, detail = _load()
    if not _enabled:
        return False, "turned off by use_native(False)"
    return lib is not None, detail


def lib():
    """The loaded library; call only where :func:`usable` or :func:`available` was true."""
    return _loaded[0]


def usable(*tensors):
    """Whether the kernels can compute on ``tensors`` (entries may be None)."""
    return plain_on_cpu(*tensors) and available()


def available():
    """Whether there are kernels, and they may be used. Builds them if nobody has asked yet."""
    return _enabled and _load()[0] is not None


def _load():
    global _loaded
    if _loaded is None:
        from . import halves, interface, products, quantized, vision

        lib, detail = _library.load()
        if lib is not None:
            for module in (halves, interface, vision):
                interface.declare(lib, module.SIGNATURES)
            modules = (halves, interface, products, quantized, vision)
            optional = {k: v for module in modules for k, v in module.OPTIONAL_SIGNATURES.items()}
            interface.declare(lib, {k: v for k, v in optional.items() if hasattr(lib, "ppsd3_" + k)})
        _loaded = lib, detail
    return _loaded
