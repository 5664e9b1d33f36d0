"""Linear layers of float32 tensors on the CPU, with or without GELU after them, each with its gradient."""

import paddle

from ..gradients import differentiable
from ..matmul import matmul
from . import lib
from .tensors import pointer, rows_of


def linear(x, weight, bias=None):
    """``x W^T + b``, or without ``b``; bias and its gradient (a column sum) by kernels."""
    return _linear(x, weight, bias)


def _forward(keep, x, weight, bias):
    return matmul(x, weight, transpose_y=True, bias=bias), (x, weight)


def _backward(dy, wanted, x, weight):
    dbias = None
    if wanted[2]:
        dbias = paddle.empty([dy.shape[-1]], dtype="float32")
        lib().ppsd3_column_sum(dy.data_ptr(), dbias.data_ptr(), *rows_of(dy))
    return (*_product_gradients(x, weight, dy, wanted), dbias)


_linear = differentiable(_forward, _backward)


def _product_gradients(x, weight, dy, wanted):
    """Gradients of ``x W^T`` by x and W, None for what is not wanted; one product each over all rows."""
    dx = matmul(dy, weight) if wanted[0] else None
    if not wanted[1]:
        return dx, None
    flat_dy, flat_x = dy.reshape([-1, dy.shape[-1]]), x.reshape([-1, x.shape[-1]])
    return dx, matmul(flat_dy, flat_x, transpose_x=True)


def _forward_gelu(keep, x, weight, bias):
    if not keep:
        return matmul(x, weight, transpose_y=True, bias=bias, gelu_after=True), ()
    y = matmul(x, weight, transpose_y=True)
    out = paddle.empty_like(y)
    lib().ppsd3_gelu(y.data_ptr(), bias.data_ptr(), out.data_ptr(), *rows_of(y))
    return out, (x, weight, y)  # y now includes the bias


def _backward_gelu(dout, wanted, x, weight, y):
    dy = paddle.empty_like(y)
    dbias = paddle.empty([y.shape[-1]], dtype="float32") if wanted[2] else None
    lib().ppsd3_gelu_backward(*map(pointer, (y, dout, dy, dbias)), *rows_of(y))
    return (*_product_gradients(x, weight, dy, wanted), dbias)


linear_gelu = differentiable(_forward_gelu, _backward_gelu)  # gelu(x W^T + b), tanh-approximated, in one pass
