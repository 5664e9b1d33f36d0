"""int8 products as functions of Paddle tensors. They have no gradient."""

from collections import namedtuple

import paddle

from . import lib
from .interface import _rows
from .products import dense, has_amx, pointer

OPTIONAL_SIGNATURES = {  # p pointer, n size; there where the CPU has the instructions
    "quantize_rows": "ppppnnn",
    "product_int8": "pppppppnnnnn",
    "amx_product_int8": "pppppppnnnnn",
}
GROUP = 256  # as quantized.cpp has it
TILE_ROWS = 32  # that amx_quantized.cpp reads at once

QuantizedActivation = namedtuple("QuantizedActivation", "data scale low shape")
QuantizedActivation.__doc__ = """Rows of 8-bit numbers, ``x = low + scale * data`` in each group of a row.

data (uint8 Tensor [rows or more, stride]), scale and low (float32 Tensor [rows, groups]), shape (list): of ``x``.
"""


def available():
    """Whether the loaded library has the kernels."""
    return hasattr(lib(), "ppsd3_product_int8")


def quantize(x):
    """``x [..., k]`` -> :class:`QuantizedActivation`."""
    x = dense(x)
    rows, k = _rows(x)
    groups = -(-k // GROUP)
    stride = -(-k // 64) * 64 + 64  # never a multiple of 4096: rows would compete for the same lines of the cache
    data = paddle.empty([-(-rows // TILE_ROWS) * TILE_ROWS, stride], dtype="uint8")
    scale, low = (paddle.empty([rows, groups], dtype="float32") for _ in range(2))
    lib().ppsd3_quantize_rows(*map(pointer, (x, data, scale, low)), rows, k, stride)
    return QuantizedActivation(data, scale, low, list(x.shape))


def on_tiles(rows):
    """Whether AMX is faster for so many rows: it rearranges all weights first."""
    return rows >= 16 and hasattr(lib(), "ppsd3_amx_product_int8") and has_amx()


def product(x, weight, weight_scale, bias, gelu=False):
    """``x (weight_scale weight)^T + bias``, then tanh-GELU if wanted, of a :class:`QuantizedActivation`."""
    rows, stride = x.scale.shape[0], x.data.shape[1]
    n, k = weight.shape
    out = paddle.empty([*x.shape[:-1], n], dtype="float32")
    tensors = (x.data, x.scale, x.low, weight, weight_scale, bias, out)
    kernel = lib().ppsd3_amx_product_int8 if on_tiles(rows) else lib().ppsd3_product_int8
    kernel(*map(pointer, tensors), rows, n, k, stride, gelu)
    return out
