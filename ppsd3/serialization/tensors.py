"""dtypes by name, and numpy memory as Paddle tensors without a copy."""

import itertools

import numpy as np
import paddle

from ..utils.errors import InputError

# numpy has no bfloat16: Paddle takes and gives it as uint16.
NUMPY_DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
FLOATING = ("float64", "float32", "float16", "bfloat16")

_counter = itertools.count()


def dtype_name(dtype):
    """``"float16"`` for ``paddle.float16``, ``"paddle.float16"``, ``np.float16`` or ``"float16"``."""
    if not isinstance(dtype, str):
        dtype = dtype.__name__ if isinstance(dtype, type) else str(dtype)
    return dtype.split(".")[-1]


def paddle_dtype(dtype):
    """The Paddle dtype for a Paddle dtype or its name; the inverse of :func:`dtype_name`.

    Raises:
        InputError: no such dtype, or one that a model cannot be held in.
    """
    name = dtype_name(dtype)
    if name not in NUMPY_DTYPES:
        raise InputError(f"{dtype!r} is no dtype that a model can be held in; use one of {', '.join(FLOATING)}.")
    return getattr(paddle, name)


def floating_dtype(dtype):
    """Like :func:`paddle_dtype`, for the dtype of a whole model: floating point, None being Paddle's default dtype."""
    dtype = paddle_dtype(paddle.get_default_dtype() if dtype is None else dtype)
    if dtype_name(dtype) not in FLOATING:
        raise InputError(f"A model cannot be held in {dtype_name(dtype)}; use one of {', '.join(FLOATING)}.")
    return dtype


def is_floating(dtype):
    """Whether ``dtype`` is a floating-point one."""
    return dtype_name(dtype) in FLOATING


def from_numpy(array):
    """A CPU tensor over ``array``'s own memory, which the tensor keeps alive; ``uint16`` means bfloat16.

    The array must be writable and aligned for as long as something may be written to the tensor in place.
    """
    if array.size == 0:  # Paddle makes no allocation for it, and then cannot share it
        name = "bfloat16" if array.dtype == np.uint16 else array.dtype.name
        return paddle.empty(list(array.shape), dtype=name)
    return paddle.base.core.eager.Tensor(
        value=array,
        place=paddle.CPUPlace(),
        persistable=False,
        zero_copy=True,
        name=f"ppsd3_memory_{next(_counter)}",
        stop_gradient=True,
    )


def put(slot, tensor):
    """Makes the parameter or buffer ``slot`` hold ``tensor``'s memory and dtype, without a copy.

    The slot stays the same Python object, trainable as before; an unallocated one (``paddle.LazyGuard``) is thereby
    initialised.
    """
    if tensor.size == 0:
        tensor = tensor.clone()
    tensor._share_buffer_to(slot)
