"""float16 and bfloat16 to float32: arrays, numbers of a file, and weights that are held in 16 bits."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor

from .dispatch import native, operation
from .native import sixteen_bit as kernels


def _contiguous(numbers, out):
    return numbers.flags.c_contiguous and out.flags.c_contiguous


def _is(name):
    return lambda descriptor, position, dtype, out: dtype == name


# What goes to a GPU is converted without kernels: they would be compiled for this alone.
@operation(native(kernels.float16_to_float32, features=("f16c",), dtypes=(), accepts=_contiguous), deciding=0)
def float16_to_float32(numbers: np.ndarray, out: np.ndarray) -> bool:
    """Writes float16 numbers into ``out`` (float32); False, and ``out`` as it was, leaves it to the caller."""
    return False


@operation(
    native(kernels.read_floats, "bfloat16", ("pread",), dtypes=(), accepts=_is("bfloat16")),
    native(kernels.read_floats, "float16", ("pread", "f16c"), dtypes=(), accepts=_is("float16")),
    deciding=0,
)
def read_floats(descriptor: int, position: int, dtype: str, out: np.ndarray) -> bool:
    """Reads numbers of a file into a contiguous float32 array, in one call: threads that load would else wait for their
    turn of Python after every piece.

    Args:
        descriptor: of the open file.
        position: in bytes.
        dtype: name of the file's dtype.

    Returns:
        False, and nothing of use in ``out``, leaves it to the caller.
    """
    return False


def _to_float32(weight, dtype):
    return dtype == paddle.float32


@operation(
    native(kernels.cast_weight, "bfloat16", dtypes=("bfloat16",), accepts=_to_float32),
    native(kernels.cast_weight, "float16", ("f16c",), dtypes=("float16",), accepts=_to_float32),
)
def cast_weight(weight: Tensor, dtype: paddle.dtype) -> Tensor:
    """``weight`` in ``dtype``."""
    return weight.astype(dtype)
