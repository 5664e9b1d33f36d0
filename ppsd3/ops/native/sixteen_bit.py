"""float16 and bfloat16 to float32: arrays, numbers of a file, and weights that are held in 16 bits."""

import paddle

from ...utils.errors import KernelError
from . import lib
from .tensors import dense


def float16_to_float32(numbers, out):
    """See :func:`ppsd3.ops.sixteen_bit.float16_to_float32`."""
    lib().ppsd3_float16_to_float32(numbers.ctypes.data, out.ctypes.data, numbers.size)
    return True


def read_floats(descriptor, position, dtype, out):
    """See :func:`ppsd3.ops.sixteen_bit.read_floats`."""
    try:
        lib().ppsd3_read_floats(descriptor, position, out.ctypes.data, out.size, dtype == "bfloat16")
        return True
    except KernelError:  # whoever reads in another way says better what is wrong with the file
        return False


def cast_weight(weight, dtype):
    """A float16 or bfloat16 tensor in float32."""
    weight, out = dense(weight), paddle.empty(weight.shape, dtype="float32")
    lib().ppsd3_cast_weight(weight.data_ptr(), out.data_ptr(), out.size, weight.dtype == paddle.bfloat16)
    return out
