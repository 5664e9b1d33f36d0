"""dtypes by name, and numpy memory as Paddle tensors without a copy."""

import functools
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


def cast(tensor, dtype):
    """``tensor`` in ``dtype``, rounded to nearest even as torch rounds."""
    source, target = dtype_name(tensor.dtype), dtype_name(dtype)
    if source == target:
        return tensor
    by_numpy = target == "float16" or (target == "bfloat16" and not _paddle_rounds())
    if by_numpy and is_floating(source) and tensor.place.is_cpu_place():
        return from_numpy(_round_to_16_bits(tensor.cast("float32").numpy(), target))
    return tensor.cast(paddle_dtype(target))


@functools.lru_cache(maxsize=None)
def _paddle_rounds():
    """Whether Paddle's own cast to bfloat16 on the CPU rounds; that of 2.6 cuts off, which biases every weight to zero.

    (Its float16 cast is not asked for at all: 2.6 cuts off there too, and 3.3 makes 6e-8 of values like 1e-27.)
    """
    value = 1 + 0.75 * 2**-7
    return float(paddle.to_tensor(value, place=paddle.CPUPlace()).cast("bfloat16").cast("float32")) > value


def _round_to_16_bits(array, target):
    """float32 -> float16, or -> bfloat16 as uint16, in pieces that keep the temporaries small."""
    result = np.empty(array.shape, NUMPY_DTYPES[target])
    flat, out = array.reshape(-1), result.reshape(-1)
    for start in range(0, flat.size, 1 << 20):
        piece = flat[start : start + (1 << 20)]
        if target == "float16":
            with np.errstate(over="ignore"):
                out[start : start + piece.size] = piece
        else:
            bits = piece.view(np.uint32)
            rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
            out[start : start + piece.size] = np.where(np.isnan(piece), bits >> 16 | 0x40, rounded)
    return result


def put(slot, tensor):
    """Makes the parameter or buffer ``slot`` hold ``tensor``'s memory and dtype, without a copy (if it is contiguous).

    The slot stays the same Python object, trainable as before; an unallocated one (``paddle.LazyGuard``) is thereby
    initialised.
    """
    if not tensor.is_contiguous():  # Paddle's transpose is a view
        tensor = tensor.contiguous()
    tensor._share_buffer_to(slot)
