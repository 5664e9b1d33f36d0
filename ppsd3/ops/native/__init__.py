"""Native CPU kernels: what Paddle's own elementwise, reduction and slicing kernels take most of a step for.

Used without being asked for when tensors are float32 on CPU, in dynamic mode without AMP, and the library can be
built (:mod:`.library`); otherwise every function of :mod:`ppsd3.ops` computes the same with Paddle alone. Gradients are
of first order: wrap code that differentiates a gradient in ``use_native(False)``.
"""

import ctypes

import paddle

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
    """The loaded library; call only where :func:`usable` was true."""
    return _loaded[0]


def usable(*tensors):
    """Whether the kernels can compute on ``tensors`` (entries may be None)."""
    return _enabled and plain_on_cpu(*tensors) and _load()[0] is not None


def half_to_float(halves, floats):
    """Converts a contiguous float16 array into a float32 one, if kernels may be used and the CPU can; else False."""
    if not (_converts("float16") and halves.flags.c_contiguous and floats.flags.c_contiguous):
        return False
    lib().ppsd3_half_to_float(halves.ctypes.data, floats.ctypes.data, halves.size)
    return True


def read_floats(descriptor, position, dtype, floats):
    """Reads float16 or bfloat16 numbers of an open file into a contiguous float32 array; False if that cannot be.

    All of it is one call: threads that load would else wait for their turn of Python after every piece.

    Args:
        descriptor (int): of the file.
        position (int): in bytes.
        dtype (str): of the file's numbers.

    Returns:
        bool: whether the array is filled. If not, kernels may not be used, or the file ended or failed.
    """
    if not (_converts(dtype) and hasattr(lib(), "ppsd3_read_floats")):
        return False
    done = ctypes.c_int64()
    pointer, brain = floats.ctypes.data, dtype == "bfloat16"
    lib().ppsd3_read_floats(descriptor, position, pointer, floats.size, brain, ctypes.byref(done))
    return done.value == floats.size


def _converts(dtype):
    """Whether kernels make float32 of ``dtype``. Not where tensors go to a GPU: they would be compiled for this alone."""
    if not (_enabled and paddle.get_device() == "cpu" and _load()[0]):
        return False
    return dtype == "bfloat16" or (dtype == "float16" and hasattr(lib(), "ppsd3_half_to_float"))


def _load():
    global _loaded
    if _loaded is None:
        from . import interface, products, quantized, vision

        lib, detail = _library.load()
        if lib is not None:
            for module in (interface, vision):
                interface.declare(lib, module.SIGNATURES)
            modules = (interface, products, quantized)
            optional = {k: v for module in modules for k, v in module.OPTIONAL_SIGNATURES.items()}
            interface.declare(lib, {k: v for k, v in optional.items() if hasattr(lib, "ppsd3_" + k)})
        _loaded = lib, detail
    return _loaded
