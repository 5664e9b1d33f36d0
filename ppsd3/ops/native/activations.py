"""tanh-approximated GELU, and its gradient."""

import paddle
from paddle.autograd import PyLayer

from ..shapes import tracked
from . import lib
from .tensors import dense, pointer, rows_of


def gelu(x):
    """tanh-approximated GELU."""
    return _Gelu.apply(x) if tracked(x) else _gelu(dense(x))


def _gelu(x):
    out = paddle.empty_like(x)
    lib().ppsd3_gelu(x.data_ptr(), None, out.data_ptr(), *rows_of(x))
    return out


class _Gelu(PyLayer):
    @staticmethod
    def forward(ctx, x):
        x = dense(x)
        ctx.save_for_backward(x)
        return _gelu(x)

    @staticmethod
    def backward(ctx, dout):
        (x,) = ctx.saved_tensor()
        dout, dx = dense(dout), paddle.empty_like(x)
        lib().ppsd3_gelu_backward(*map(pointer, (x, dout, dx, None)), *rows_of(x))
        return dx
