"""Conversion between dtypes, and from numpy arrays to Paddle tensors without a copy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import paddle

from ..ops.sixteen_bit import float16_to_float32
from ..utils.checking import shown
from ..utils.errors import InputError
from ..utils.paddle_internals import copy_to, current_place, share_memory, tensor_over
from ..utils.types import Dtype

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
_TORCH_NAMES = {"half": "float16", "float": "float32", "double": "float64"}
FLOATING = ("float64", "float32", "float16", "bfloat16")

PIECE = 1 << 17  # elements


def dtype_name(dtype: Any) -> str:
    """``"float16"`` for Paddle's, torch's or numpy's dtype, or for ``"float16"``, ``"torch.float16"`` or ``"half"``."""
    name = (dtype.__name__ if isinstance(dtype, type) else str(dtype)).rpartition(".")[2]
    return _TORCH_NAMES.get(name, name)


def paddle_dtype(dtype: Dtype, argument: str = "paddle_dtype") -> paddle.dtype:
    """The Paddle dtype for a Paddle dtype or its name; the inverse of :func:`dtype_name`.

    Args:
        argument: what messages call it.

    Raises:
        InputError: no such dtype, or one that a model cannot have.
    """
    name = dtype_name(dtype)
    if name not in NUMPY_DTYPES:
        raise InputError(
            f"{argument} is {shown(dtype)}, no dtype that a model can be held in; use one of {', '.join(FLOATING)}."
        )
    return getattr(paddle, name)


def floating_dtype(dtype: Dtype | None, argument: str = "paddle_dtype") -> paddle.dtype:
    """Like :func:`paddle_dtype`, for a model: floating-point dtypes only, None is Paddle's default dtype."""
    dtype = paddle_dtype(paddle.get_default_dtype() if dtype is None else dtype, argument)
    if dtype_name(dtype) not in FLOATING:
        raise InputError(
            f"{argument}: a model cannot be held in {dtype_name(dtype)}; use one of {', '.join(FLOATING)}."
        )
    return dtype


def is_floating(dtype: Dtype) -> bool:
    """Whether ``dtype`` is a floating-point one."""
    return dtype_name(dtype) in FLOATING


def from_numpy(array: np.ndarray) -> paddle.Tensor:
    """A CPU tensor over ``array``'s own memory, which the tensor keeps alive; ``uint16`` means bfloat16.

    The array must be writable and aligned for as long as something may be written to the tensor in place.
    """
    if array.size == 0:  # Paddle makes no allocation for it, and then cannot share it
        name = "bfloat16" if array.dtype == np.uint16 else array.dtype.name
        return paddle.empty(list(array.shape), dtype=name)
    return tensor_over(array)


def on_current_device(tensor: paddle.Tensor) -> paddle.Tensor:
    """The CPU tensor ``tensor`` on Paddle's current device: itself on the CPU, else a copy."""
    return tensor if paddle.get_device() == "cpu" else copy_to(tensor, current_place())


def cast(tensor: paddle.Tensor, dtype: Dtype) -> paddle.Tensor:
    """``tensor`` in ``dtype``, rounded to nearest even as torch rounds."""
    source, target = dtype_name(tensor.dtype), dtype_name(dtype)
    if source == target:
        return tensor
    if not tensor.place.is_cpu_place():
        return tensor.cast(paddle_dtype(target))
    array = tensor.numpy()
    result = np.empty(array.shape, NUMPY_DTYPES[target])
    for piece in pieces(array.size):
        convert(array.reshape(-1)[piece], source, target, out=result.reshape(-1)[piece])
    return from_numpy(result)


def pieces(size: int) -> list[slice]:
    """Slices that cover ``range(size)``, each small enough for its temporaries to stay in the cache."""
    return [slice(start, min(start + PIECE, size)) for start in range(0, size, PIECE)]


def convert(array: np.ndarray, source: str, target: str, out: np.ndarray) -> None:
    """Converts ``array`` from the dtype called ``source`` to ``target``, into ``out``, rounded to nearest even.

    In numpy, because Paddle's casts on the CPU are no faster and do not all round: 2.6 cuts float32 off to the 16-bit
    dtypes, which biases every weight towards zero, and 3.3 makes a float16 of 6e-8 from 1e-27.
    """
    if source == "bfloat16":
        if target == "float32":
            np.left_shift(array, 16, out=out.view(np.uint32), dtype=np.uint32)
            return
        array = np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
    elif source in _FP8_TABLES:
        array = _FP8_TABLES[source][array]
    elif source == "float16" and target != "float16":
        if target == "float32" and (float16_to_float32(array, out) or _shift_halves(array, out)):
            return
        array = np.take(_half_values(), array.view(np.uint16))  # twice as fast as numpy's own conversion
    if target == "bfloat16":
        _round_to_bfloat16(array.astype(np.float32, copy=False), out)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = array


def _shift_halves(array, out):
    """Converts float16 to float32 within ``out``'s memory; False, leaving ``out`` invalid, if a value is not finite.

    A float16's exponent and mantissa, shifted by 13 bits, are those of a float32 2^112 times smaller. Temporaries would
    cost more than the arithmetic: fresh memory for each piece.
    """
    smallest = np.array(1, np.int32).view(np.float32)
    if smallest * _HALF_SCALE == 0:  # this thread flushes subnormal numbers to zero
        return False
    bits = out.view(np.int32)
    bits[...] = array.view(np.int16)  # with the sign in all upper bits
    bits <<= 13
    bits &= np.int32(~0x7000_0000)
    out *= _HALF_SCALE
    return out.size == 0 or bool(out.min() > -_HALF_LIMIT and out.max() < _HALF_LIMIT)


_HALF_SCALE = np.float32(2.0**112)
_HALF_LIMIT = np.float32(2.0**16)  # shifted infinity and NaN become this or more


@functools.cache
def _half_values():
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _round_to_bfloat16(array, out):
    bits = array.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    out[...] = rounded
    is_nan = np.isnan(array)
    if is_nan.any():  # adding to the mantissa could have made an infinity or a zero of it
        out[is_nan] = 0x7FC0


def _e4m3_values():
    """float32 [256]: every byte's value as a float8_e4m3fn, which has no infinity."""
    codes = np.arange(256)
    sign, exponent, mantissa = np.where(codes & 0x80, -1.0, 1.0), codes >> 3 & 0xF, codes & 7
    values = sign * np.ldexp(np.where(exponent == 0, mantissa / 8, 1 + mantissa / 8), np.maximum(exponent, 1) - 7)
    values[codes & 0x7F == 0x7F] = np.nan
    return values.astype(np.float32)


# A float8_e5m2 is the upper byte of a float16.
_FP8_TABLES = {
    "float8_e4m3fn": _e4m3_values(),
    "float8_e5m2": (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32),
}


def put(slot: paddle.Tensor, tensor: paddle.Tensor) -> None:
    """Makes the parameter or buffer ``slot`` hold ``tensor``'s memory and dtype, without a copy (if it is contiguous).

    The slot stays the same Python object, trainable as before; an unallocated one (``paddle.LazyGuard``) is thereby
    initialised.
    """
    if not tensor.is_contiguous():  # Paddle's transpose is a view
        tensor = tensor.contiguous()
    share_memory(tensor, slot)
