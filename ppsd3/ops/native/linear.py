"""Linear layers of float32 tensors on the CPU, with or without GELU after them, each with its gradient."""

import paddle
from paddle.autograd import PyLayer

from ..matmul import matmul
from ..shapes import tracked
from . import lib
from .tensors import dense, pointer, rows_of


def linear(x, weight, bias=None):
    """``x W^T + b``, or without ``b``; bias and its gradient (a column sum) by kernels."""
    if bias is None:
        return _PlainLinear.apply(x, weight) if tracked(x, weight) else matmul(x, weight, transpose_y=True)
    if tracked(x, weight, bias):
        return _Linear.apply(x, weight, bias)
    return matmul(x, weight, transpose_y=True, bias=dense(bias))


def _product_gradients(x, weight, dy, ctx):
    """Gradients of ``x W^T`` by x and W, None for what needs none; one product each over all rows."""
    needs_x, needs_weight = ctx.needs
    dx = matmul(dy, weight) if needs_x else None
    if not needs_weight:
        return dx, None
    flat_dy, flat_x = dy.reshape([-1, dy.shape[-1]]), x.reshape([-1, x.shape[-1]])
    return dx, matmul(flat_dy, flat_x, transpose_x=True)


class _PlainLinear(PyLayer):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.needs = (not x.stop_gradient, not weight.stop_gradient)
        ctx.save_for_backward(x, weight)
        return matmul(x, weight, transpose_y=True)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensor()
        return _product_gradients(x, weight, dense(dy), ctx)


class _Linear(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.needs = (not x.stop_gradient, not weight.stop_gradient)
        ctx.needs_bias = not bias.stop_gradient
        ctx.save_for_backward(x, weight)
        return matmul(x, weight, transpose_y=True, bias=dense(bias))

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensor()
        dy, dbias = dense(dy), None
        if ctx.needs_bias:
            dbias = paddle.empty([dy.shape[-1]], dtype="float32")
            lib().ppsd3_column_sum(dy.data_ptr(), dbias.data_ptr(), *rows_of(dy))
        return (*_product_gradients(x, weight, dy, ctx), dbias)


def linear_gelu(x, weight, bias):
    """``gelu(x W^T + b)``, tanh-approximated; bias and activation in one pass."""
    if tracked(x, weight, bias):
        return _LinearGelu.apply(x, weight, bias)
    return matmul(x, weight, transpose_y=True, bias=dense(bias), gelu_after=True)


class _LinearGelu(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.needs = (not x.stop_gradient, not weight.stop_gradient)
        ctx.needs_bias = not bias.stop_gradient
        y, bias = matmul(x, weight, transpose_y=True), dense(bias)
        out = paddle.empty_like(y)
        lib().ppsd3_gelu(y.data_ptr(), bias.data_ptr(), out.data_ptr(), *rows_of(y))
        ctx.save_for_backward(x, weight, y)  # y now includes the bias
        return out

    @staticmethod
    def backward(ctx, dout):
        x, weight, y = ctx.saved_tensor()
        dout, dy = dense(dout), paddle.empty_like(y)
        dbias = paddle.empty([y.shape[-1]], dtype="float32") if ctx.needs_bias else None
        lib().ppsd3_gelu_backward(*map(pointer, (y, dout, dy, dbias)), *rows_of(y))
        return (*_product_gradients(x, weight, dy, ctx), dbias)
