"""int8 products of float32 tensors on the CPU. They have no gradient."""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor

from . import lib
from .tensors import dense, pointer, rows_of

GROUP = 256  # features that share a range; as quantized.cpp has it
TILE_ROWS = 32  # that amx_quantized.cpp reads at once


class QuantizedActivation(NamedTuple):
    """Rows of 8-bit numbers, ``x = low + scale * data`` in each group of a row."""

    data: Tensor  # uint8, [rows or more, k or more]
    scale: Tensor  # float32, [rows, groups], as low
    low: Tensor
    shape: list[int]  # of x


def quantize(x):
    """``x [..., k]`` -> :class:`QuantizedActivation`."""
    x = dense(x)
    rows, k = rows_of(x)
    groups = -(-k // GROUP)
    stride = -(-k // 64) * 64 + 64  # never a multiple of 4096: rows would compete for the same lines of the cache
    data = paddle.empty([-(-rows // TILE_ROWS) * TILE_ROWS, stride], dtype="uint8")
    scale, low = (paddle.empty([rows, groups], dtype="float32") for _ in range(2))
    lib().ppsd3_quantize_rows(*map(pointer, (x, data, scale, low)), rows, k, stride)
    return QuantizedActivation(data, scale, low, list(x.shape))


def product(weight_scale, bias, x, weight, gelu=False, kernel="product_int8"):
    """``x (weight_scale weight)^T + bias``, then tanh-GELU if wanted, of a :class:`QuantizedActivation`."""
    rows, stride = x.scale.shape[0], x.data.shape[1]
    n, k = weight.shape
    out = paddle.empty([*x.shape[:-1], n], dtype="float32")
    tensors = (x.data, x.scale, x.low, weight, weight_scale, bias, out)
    getattr(lib(), "ppsd3_" + kernel)(*map(pointer, tensors), rows, n, k, stride, gelu)
    return out


def pays_on_tiles(weight_scale, bias, x, weight, gelu=False):
    """Whether AMX is faster for so many rows: it rearranges all weights first."""
    return x.scale.shape[0] >= 16
