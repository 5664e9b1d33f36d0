"""int8 products as functions of Paddle tensors. They have no gradient."""

from collections import namedtuple

import paddle

from . import lib
from .interface import _dense, _pointer, _rows

OPTIONAL_SIGNATURES = {  # p pointer, n size; there where the CPU has the instructions
    "quantize_rows": "ppppnnn",
    "product_int8": "pppppppnnnnn",
}
GROUP = 256  # as quantized.cpp has it

QuantizedActivation = namedtuple("QuantizedActivation", "data scale low shape")
QuantizedActivation.__doc__ = """Rows of 8-bit numbers, ``x = low + scale * data`` in each group of a row.

data (uint8 Tensor [rows, stride]), scale and low (float32 Tensor [rows, groups]), shape (list of int): of ``x``.
"""


def available():
    """Whether the loaded library has the kernels."""
    return hasattr(lib(), "ppsd3_product_int8")


def quantize(x):
    """``x [..., k]`` -> :class:`QuantizedActivation`."""
    x = _dense(x)
    rows, k = _rows(x)
    groups = -(-k // GROUP)
    stride = -(-k // 64) * 64 + 64  # never a multiple of 4096: rows would compete for the same lines of the cache
    data = paddle.empty([rows, stride], dtype="uint8")
    scale, low = (paddle.empty([rows, groups], dtype="float32") for _ in range(2))
    lib().ppsd3_quantize_rows(*map(_pointer, (x, data, scale, low)), rows, k, stride)
    return QuantizedActivation(data, scale, low, list(x.shape))


def product(x, weight, weight_scale, bias, gelu=False):
    """``x (weight_scale weight)^T + bias``, then tanh-GELU if wanted, of a :class:`QuantizedActivation`."""
    rows, stride = x.data.shape
    n, k = weight.shape
    out = paddle.empty([*x.shape[:-1], n], dtype="float32")
    tensors = (x.data, x.scale, x.low, weight, weight_scale, bias, out)
    lib().ppsd3_product_int8(*map(_pointer, tensors), rows, n, k, stride, gelu)
    return out
