"""Native CPU kernels: what Paddle's own elementwise, reduction and slicing kernels take most of a step for.

Used without being asked for when tensors are float32 on CPU, in dynamic mode without AMP, and the library can be
built (:mod:`.library`); otherwise every function of :mod:`ppsd3.ops` computes the same with Paddle alone. Gradients are
of first order: wrap code that differentiates a gradient in ``use_native(False)``.
"""

import paddle
from paddle.base.framework import _dygraph_tracer, core

from ...utils.errors import ConfigError
from . import library as _library

_enabled = True
_precision = "high"
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


class float32_matmul_precision:
    """How exactly native linear layers multiply float32, from the call on; as a context manager, until its end.

    Args:
        precision (str): the names are torch's (``torch.set_float32_matmul_precision``).

            - "highest": float32, each sum in the usual way; relative errors near 5e-7.
            - "high" (the initial state): float32, but wide layers with many rows by Strassen's algorithm where the CPU
              has AVX-512: up to an eighth faster, relative errors near 3e-6 of the largest result among some 200 rows.
            - "medium": operands rounded to bfloat16, with sums in float32, where the CPU has AVX512-BF16: about
              twice as fast, relative errors near 3e-3. Meant for training.

    Raises:
        ConfigError: another name.
    """

    def __init__(self, precision):
        global _precision
        if precision not in ("highest", "high", "medium"):
            raise ConfigError(f"precision={precision!r} is not known. Choose 'highest', 'high' or 'medium'.")
        self._before, _precision = _precision, precision

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        global _precision
        _precision = self._before


def bf16_products():
    """Whether linear layers round their operands to bfloat16 now."""
    return _precision == "medium" and hasattr(lib(), "ppsd3_product_bf16")


def strassen_levels(m, n, k):
    """How deep Strassen's algorithm goes in a product [m, k] x [k, n] now: 2, 1, or 0 for the usual way.

    Two levels save a quarter of the multiplications and one an eighth; sums of blocks have to be made for it, which
    pays from these sizes on.
    """
    if _precision != "high" or min(n, k) < 1024 or m < 256 or not hasattr(lib(), "ppsd3_strassen"):
        return 0
    return 2 if m >= 600 else 1


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
    if not _enabled or not paddle.in_dynamic_mode() or _dygraph_tracer()._amp_level != core.AmpLevel.O0:
        return False
    for x in tensors:
        if x is not None and not (x.dtype == paddle.float32 and x.place.is_cpu_place() and 0 not in x.shape):
            return False
    return _load()[0] is not None


def half_to_float(halves, floats):
    """Converts a contiguous float16 array into a float32 one, if kernels may be used and the CPU can; else False.

    Not where tensors go to a GPU: the kernels would be compiled for this alone.
    """
    if not (_enabled and paddle.get_device() == "cpu" and _load()[0] and hasattr(lib(), "ppsd3_half_to_float")):
        return False
    if not (halves.flags.c_contiguous and floats.flags.c_contiguous):
        return False
    lib().ppsd3_half_to_float(halves.ctypes.data, floats.ctypes.data, halves.size)
    return True


def _load():
    global _loaded
    if _loaded is None:
        from . import interface, quantized, vision

        lib, detail = _library.load()
        if lib is not None:
            for module in (interface, vision):
                interface.declare(lib, module.SIGNATURES)
            optional = {**interface.OPTIONAL_SIGNATURES, **quantized.OPTIONAL_SIGNATURES}
            interface.declare(lib, {k: v for k, v in optional.items() if hasattr(lib, "ppsd3_" + k)})
        _loaded = lib, detail
    return _loaded
