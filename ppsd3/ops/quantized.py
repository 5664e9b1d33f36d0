"""Linear layer with int8 weights: a quarter of the memory, and integer products where the CPU is good at them.

Weights are symmetric, with one scale for each output. Activations are rounded on the way, for each token anew, in
groups of 256 features that have a range of their own: an outlier (a few features of trained transformers are a hundred
times the others) then costs precision to its group alone, and no calibration data is needed. A range is [min, max] and
not [-max, max], since the inputs of the feed-forward's second layer come out of GELU and hardly reach below zero.

It is computed in integers by the native kernels on a CPU with VNNI, and anywhere else, and wherever a gradient passes,
with the weights multiplied out: products are then in the activations' dtype, so the result is nearer to the unquantised
layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import paddle
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from ..utils.paddle_internals import has_hooks, no_grad
from .dispatch import choose, native, operation
from .native import quantized as kernels
from .native.quantized import GROUP, QuantizedActivation
from .shapes import tracked

LEVELS = 127  # of a weight, on either side of zero


class QuantizedLinear(nn.Layer):
    """``y = x (weight_scale * weight)^T + bias``.

    Weights cannot be trained; a gradient passes to ``x`` and ``bias``, which is what an adapter around the layer needs.

    Args:
        weight, weight_scale: int8 ``[out_features, in_features]``, and ``[out_features]``; kept as buffers.
        bias: a parameter ``[out_features]``.

    Shapes: ``x [..., in_features]`` (or what :func:`shared_input` made of it) -> ``[..., out_features]``.
    """

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features: int = weight.shape[0]
        self.in_features: int = weight.shape[1]
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.bias = bias

    @classmethod
    @no_grad
    def from_linear(cls, linear: nn.Layer) -> QuantizedLinear:
        """The int8 layer nearest to a :class:`~ppsd3.ops.Linear`, whose bias it takes over."""
        return cls(*quantize_weight(linear.weight), linear.bias)

    @classmethod
    def unfilled(cls, linear: nn.Layer) -> QuantizedLinear:
        """A layer of the same sizes, for weights to be loaded into."""
        weight = paddle.empty([linear.out_features, linear.in_features], dtype="int8")
        return cls(weight, paddle.empty([linear.out_features], dtype="float32"), linear.bias)

    @classmethod
    @no_grad
    def concatenated(cls, layers: Sequence[QuantizedLinear]) -> QuantizedLinear:
        """One layer with the outputs of all of ``layers``."""
        names = ("weight", "weight_scale") if layers[0].bias is None else ("weight", "weight_scale", "bias")
        return cls(*(paddle.concat([getattr(layer, name) for layer in layers]) for name in names))

    @property
    def compute_dtype(self) -> paddle.dtype:
        """dtype of its input and output."""
        return self.weight_scale.dtype

    def forward(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.weight, self.weight_scale, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, int8"


class WeightOnlyLinear(QuantizedLinear):
    """A :class:`QuantizedLinear` whose activations are never rounded: for layers of many weights and few rows."""

    def forward(self, x: Tensor) -> Tensor:
        return weight_only_linear(x, self.weight, self.weight_scale, self.bias)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight [out, in]`` -> int8 of the same shape, and ``scale [out]`` in the weight's dtype."""
    weight, dtype = weight.astype("float32"), weight.dtype
    scale = weight.abs().max(axis=1) / LEVELS
    divisor = paddle.where(scale > 0, scale, paddle.ones_like(scale)).unsqueeze(1)
    return (weight / divisor).round().clip(-LEVELS, LEVELS).astype("int8"), scale.astype(dtype)


@operation(native(kernels.quantize, features=("vnni",), gradients=False))
def _quantize(x):
    """``x [..., k]`` in 8 bits."""
    k = x.shape[-1]
    rows, groups = x.reshape([-1, k]), []
    for start in range(0, k, GROUP):
        group = rows[:, start : start + GROUP]
        low = group.min(axis=-1, keepdim=True)
        scale = (group.max(axis=-1, keepdim=True) - low) / 255
        levels = ((group - low) / paddle.where(scale > 0, scale, paddle.ones_like(scale)) + 0.5).floor().clip(0, 255)
        groups.append((levels.astype("uint8"), scale, low))
    data, scale, low = (paddle.concat(parts, axis=-1) for parts in zip(*groups))
    return QuantizedActivation(data, scale, low, list(x.shape))


@operation(
    native(partial(kernels.product, kernel="amx_product_int8"), "amx", ("amx_int8",), pays=kernels.pays_on_tiles),
    native(kernels.product, "vnni", ("vnni",)),
    deciding=2,
)
def _quantized_product(weight_scale, bias, x, weight, gelu=False):
    """``x (weight_scale * weight)^T + bias`` of a :class:`QuantizedActivation`, then tanh-GELU if wanted."""
    y, k = 0.0, weight.shape[1]
    for i, start in enumerate(range(0, k, GROUP)):
        data = x.data[: x.scale.shape[0], start : min(start + GROUP, k)].astype("float32")
        part = weight[:, start : start + GROUP].astype("float32")  # sums of a group are exact in float32
        y += x.scale[:, i : i + 1] * paddle.matmul(data, part, transpose_y=True) + x.low[:, i : i + 1] * part.sum(
            axis=1
        )
    y = (y * weight_scale).reshape([*x.shape[:-1], -1])
    y = y if bias is None else y + bias
    return nn.functional.gelu(y, approximate=True) if gelu else y


def _in_integers(x, weight_scale, bias, weight, gelu):
    return _quantized_product(weight_scale, bias, _quantize(x), weight, gelu)


@operation(native(_in_integers, "integers", ("vnni",), gradients=False), deciding=3)
def _quantized_linear(x, weight_scale, bias, weight, gelu):
    y = weight_only_linear(x, weight, weight_scale, bias)
    return nn.functional.gelu(y, approximate=True) if gelu else y


def quantized_linear(
    x: Tensor | QuantizedActivation,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """``x (weight_scale * weight)^T + bias``, then tanh-GELU if wanted; see :class:`QuantizedLinear`."""
    if isinstance(x, QuantizedActivation):
        return _quantized_product(weight_scale, bias, x, weight, gelu)
    return _quantized_linear(x, weight_scale, bias, weight, gelu)


def shared_input(x: Tensor, *layers: nn.Layer) -> Tensor | QuantizedActivation:
    """``x``, rounded once for all of ``layers`` where each of them would round it; otherwise as it is."""
    return _quantize(x) if all(_rounds(x, layer) for layer in layers) else x


def _rounds(x, layer):
    if type(layer) is not QuantizedLinear or has_hooks(layer):
        return False
    return choose("quantized_linear", x, layer.weight_scale, layer.bias, layer.weight, False).name == "integers"


def weight_only_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer with its weights multiplied out: differentiable by ``x``, in ``x``'s dtype, on any device."""
    product = _DenseProduct.apply if tracked(x) else _dense_product
    y = product(x, weight, weight_scale)
    return y if bias is None else y + bias


def _dense_product(x, weight, weight_scale):
    return paddle.matmul(x, _dense(weight, weight_scale, x.dtype), transpose_y=True)


def _dense(weight, weight_scale, dtype):
    if paddle.in_dynamic_mode():
        return weight.astype(dtype).multiply_(weight_scale.astype(dtype).unsqueeze(1))  # one large matrix, not two
    return weight.astype(dtype) * weight_scale.astype(dtype).unsqueeze(1)


class _DenseProduct(PyLayer):
    """Keeps the int8 weight for the backward pass, not the one that is multiplied out, which is made twice."""

    @staticmethod
    def forward(ctx, x, weight, weight_scale):
        ctx.save_for_backward(weight, weight_scale)
        return _dense_product(x, weight, weight_scale)

    @staticmethod
    def backward(ctx, dy):
        weight, weight_scale = ctx.saved_tensor()
        return paddle.matmul(dy, _dense(weight, weight_scale, dy.dtype)), None, None
