"""float16 and bfloat16 to float32: arrays, numbers of a file, and weights that are held in 16 bits."""

import paddle

from . import available, lib
from .products import dense

SIGNATURES = {"cast_weight": "ppnn"}  # p pointer, n size
OPTIONAL_SIGNATURES = {"float16_to_float32": "ppn", "read_floats": "nnpnn"}  # only where the CPU or the system can


def half_to_float(halves, floats):
    """Converts a contiguous float16 array into a float32 one, if kernels may be used and the CPU can; else False."""
    if not (_loads("float16") and halves.flags.c_contiguous and floats.flags.c_contiguous):
        return False
    lib().ppsd3_float16_to_float32(halves.ctypes.data, floats.ctypes.data, halves.size)
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
    if not (_loads(dtype) and hasattr(lib(), "ppsd3_read_floats")):
        return False
    pointer, is_bfloat16 = floats.ctypes.data, dtype == "bfloat16"
    return lib().ppsd3_read_floats(descriptor, position, pointer, floats.size, is_bfloat16) == 0


def casts(weight):
    """Whether :func:`cast_weight` takes this weight."""
    return weight.place.is_cpu_place() and weight.size > 0 and _converts(str(weight.dtype).split(".")[-1])


def cast_weight(weight):
    """A float16 or bfloat16 tensor in float32."""
    weight, out = dense(weight), paddle.empty(weight.shape, dtype="float32")
    lib().ppsd3_cast_weight(weight.data_ptr(), out.data_ptr(), out.size, weight.dtype == paddle.bfloat16)
    return out


def _loads(dtype):
    """Whether kernels convert what is loaded. Not where it goes to a GPU: they would be compiled for this alone."""
    return dtype in ("float16", "bfloat16") and paddle.get_device() == "cpu" and available() and _converts(dtype)


def _converts(dtype):
    return dtype == "bfloat16" or (dtype == "float16" and hasattr(lib(), "ppsd3_float16_to_float32"))
