"""Linear layer whose weights are held in 16 bits and cast when they are used: half the memory, any dtype's arithmetic.

A CPU multiplies no 16-bit matrices in Paddle, and a model in float32 takes twice the memory of its file. Here the
weights stay what the file has, mapped and not read until they are needed, and each product casts them into memory that
the next one uses again.
"""

from __future__ import annotations

import paddle
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from .shapes import tracked
from .sixteen_bit import cast_weight


class CastingLinear(nn.Layer):
    """``y = x W^T + b`` with W in a 16-bit dtype, computed in the dtype of ``x``.

    W is a buffer and cannot be trained; a gradient passes to ``x`` and ``bias``, as an adapter needs.

    Args:
        weight: float16 or bfloat16, ``[out_features, in_features]``.
        bias: a parameter ``[out_features]`` in the dtype of the activations.
        compute_dtype: of its input and output.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, compute_dtype: paddle.dtype = paddle.float32
    ) -> None:
        super().__init__()
        self.out_features: int = weight.shape[0]
        self.in_features: int = weight.shape[1]
        self.register_buffer("weight", weight)
        self.bias = bias
        self.compute_dtype = compute_dtype

    @classmethod
    def unfilled(cls, linear: nn.Layer, dtype: paddle.dtype, compute_dtype: paddle.dtype) -> CastingLinear:
        """A layer of the sizes of a :class:`~ppsd3.ops.Linear`, for weights of ``dtype`` to be put into."""
        return cls(paddle.empty([linear.out_features, linear.in_features], dtype), linear.bias, compute_dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = _CastingProduct.apply(x, self.weight) if tracked(x) else _product(x, self.weight)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        held = str(self.weight.dtype).split(".")[-1]
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {held}"


def _product(x, weight):
    return paddle.matmul(x, cast_weight(weight, x.dtype), transpose_y=True)


class _CastingProduct(PyLayer):
    """Keeps the 16-bit weight for the backward pass, not its cast copy."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx, dy):
        (weight,) = ctx.saved_tensor()
        return paddle.matmul(dy, cast_weight(weight, dy.dtype)), None
