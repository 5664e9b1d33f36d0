"""Products ``a b + bias`` of float32 matrices on the CPU, each by one algorithm; they record no gradient.

All take what :func:`ppsd3.ops.matmul.matmul` takes.
"""

import math

import paddle

from . import lib
from .tensors import dense, pointer, rows_of


def sizes(a, b, transpose_x, transpose_y):
    """(leading axes of the result, m, n, k) of ``[m, k]`` times ``[k, n]``."""
    leading, k = (a.shape[1:], a.shape[0]) if transpose_x else (a.shape[:-1], a.shape[-1])
    return leading, math.prod(leading), b.shape[0 if transpose_y else 1], k


def amx(a, b, transpose_x=False, transpose_y=False, bias=None, gelu_after=False, parts=3):
    """On AMX tiles, each operand as the sum of so many bfloat16 numbers."""
    options = transpose_x, transpose_y, gelu_after, parts
    return _product(lib().ppsd3_amx_product, a, b, transpose_x, transpose_y, bias, *options)


def amx_pays(a, b, transpose_x=False, transpose_y=False, bias=None, gelu_after=False, parts=3):
    """Whether the product is large enough for the preparation of the operands."""
    _, m, n, k = sizes(a, b, transpose_x, transpose_y)
    return m >= 64 and n >= 32 and k >= 64 and m * n * k >= parts**3 << 20


def strassen(a, b, transpose_x=False, transpose_y=False, bias=None, gelu_after=False, levels=None):
    """Strassen's algorithm, 2 levels deep or 1: two save a quarter of the multiplications and one an eighth."""
    levels = levels or (2 if sizes(a, b, transpose_x, transpose_y)[1] >= 600 else 1)
    return _product(lib().ppsd3_strassen, a, b, transpose_x, transpose_y, bias, levels, gelu_after)


def strassen_accepts(a, b, transpose_x=False, transpose_y=False, bias=None, gelu_after=False):
    """Whether operands are in the order of a linear layer's."""
    return transpose_y and not transpose_x


def strassen_pays(a, b, transpose_x=False, transpose_y=False, bias=None, gelu_after=False):
    """Whether the layer is wide and has many rows."""
    _, m, n, k = sizes(a, b, transpose_x, transpose_y)
    return min(n, k) >= 1024 and m >= 256


def bfloat16(a, b, transpose_x=False, transpose_y=False, bias=None, gelu_after=False):
    """Operands rounded to bfloat16, by AVX512-BF16."""
    out = _product(lib().ppsd3_product_bf16, a, b, transpose_x, transpose_y, bias, transpose_x, transpose_y)
    if gelu_after:
        lib().ppsd3_gelu(out.data_ptr(), None, out.data_ptr(), *rows_of(out))
    return out


def by_paddle(a, b, transpose_x=False, transpose_y=False, bias=None, gelu_after=False):
    """Paddle's product; bias and GELU in one pass after it."""
    out = paddle.matmul(a, b, transpose_x, transpose_y)
    if gelu_after or bias is not None:
        if gelu_after:
            lib().ppsd3_gelu(out.data_ptr(), pointer(bias), out.data_ptr(), *rows_of(out))
        else:
            lib().ppsd3_add_bias(out.data_ptr(), pointer(bias), *rows_of(out))
    return out


def _product(kernel, a, b, transpose_x, transpose_y, bias, *options):
    leading, m, n, k = sizes(a, b, transpose_x, transpose_y)
    a, b, out = dense(a), dense(b), paddle.empty([*leading, n], dtype="float32")
    kernel(*map(pointer, (a, b, bias, out)), m, n, k, *options)
    return out
