"""Linear layer with int8 weights: a quarter of the memory, and integer products where the CPU is good at them.

Weights are symmetric, with one scale for each output. Activations are rounded on the way, for each token anew, in
groups of 256 features that have a range of their own: an outlier (a few features of trained transformers are a hundred
times the others) then costs precision to its group alone, and no calibration data is needed. A range is [min, max] and
not [-max, max], since the inputs of the feed-forward's second layer come out of GELU and hardly reach below zero.

Three ways to compute it:

- *integer*, by the native kernels on a CPU with VNNI (:func:`integer_products`);
- *weight-only*, anywhere else, and wherever a gradient passes: weights are multiplied out, products are in the
  activations' dtype, so the result is nearer to the unquantised layer;
- the definition of *integer* in Paddle, for tests: :func:`quantized_linear_reference`.
"""

import paddle
from paddle import nn

from ..utils.paddle_internals import has_hooks
from . import native
from .native import quantized as kernels
from .native.quantized import GROUP, QuantizedActivation
from .shapes import tracked

LEVELS = 127  # of a weight, on either side of zero


class QuantizedLinear(nn.Layer):
    """``y = x (weight_scale * weight)^T + bias``.

    Weights cannot be trained; a gradient passes to ``x`` and ``bias``, which is what an adapter around the layer needs.

    Args:
        weight (int8 Tensor [out_features, in_features]), weight_scale (Tensor [out_features]): kept as buffers.
        bias (Tensor [out_features], optional): a parameter.

    Shapes: ``x [..., in_features]`` (or what :func:`shared_input` made of it) -> ``[..., out_features]``.
    """

    def __init__(self, weight, weight_scale, bias=None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.bias = bias

    @classmethod
    @paddle.no_grad()
    def from_linear(cls, linear):
        """The int8 layer nearest to a :class:`~ppsd3.ops.Linear`, whose bias it takes over."""
        return cls(*quantize_weight(linear.weight), linear.bias)

    @classmethod
    def unfilled(cls, linear):
        """A layer of the same sizes, for weights to be loaded into."""
        weight = paddle.empty([linear.out_features, linear.in_features], dtype="int8")
        return cls(weight, paddle.empty([linear.out_features], dtype="float32"), linear.bias)

    @classmethod
    @paddle.no_grad()
    def concatenated(cls, layers):
        """One layer with the outputs of all of ``layers``."""
        names = ("weight", "weight_scale") if layers[0].bias is None else ("weight", "weight_scale", "bias")
        return cls(*(paddle.concat([getattr(layer, name) for layer in layers]) for name in names))

    @property
    def compute_dtype(self):
        """dtype of its input and output."""
        return self.weight_scale.dtype

    def forward(self, x):
        return quantized_linear(x, self.weight, self.weight_scale, self.bias)

    def extra_repr(self):
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, int8"


class WeightOnlyLinear(QuantizedLinear):
    """A :class:`QuantizedLinear` whose activations are never rounded: for layers of many weights and few rows."""

    def forward(self, x):
        return weight_only_linear(x, self.weight, self.weight_scale, self.bias)


def quantize_weight(weight):
    """``weight [out, in]`` -> int8 of the same shape, and ``scale [out]`` in the weight's dtype."""
    weight, dtype = weight.astype("float32"), weight.dtype
    scale = weight.abs().max(axis=1) / LEVELS
    divisor = paddle.where(scale > 0, scale, paddle.ones_like(scale)).unsqueeze(1)
    return (weight / divisor).round().clip(-LEVELS, LEVELS).astype("int8"), scale.astype(dtype)


def quantized_linear(x, weight, weight_scale, bias=None, gelu=False):
    """``x (weight_scale * weight)^T + bias``, then tanh-GELU if wanted; see :class:`QuantizedLinear`."""
    if not isinstance(x, QuantizedActivation):
        if not integer_products(x, weight_scale, bias):
            y = weight_only_linear(x, weight, weight_scale, bias)
            return nn.functional.gelu(y, approximate=True) if gelu else y
        x = kernels.quantize(x)
    return kernels.product(x, weight, weight_scale, bias, gelu)


def integer_products(*tensors):
    """Whether products with ``tensors`` (activations, scales, biases) are computed in integers."""
    if paddle.in_dynamic_mode() and tracked(*tensors):
        return False
    return native.usable(*tensors) and kernels.available()


def shared_input(x, *layers):
    """``x``, rounded once for all of ``layers`` where each of them would round it; otherwise as it is."""
    if all(type(layer) is QuantizedLinear and not has_hooks(layer) for layer in layers):
        if integer_products(x, *(t for layer in layers for t in (layer.weight_scale, layer.bias))):
            return kernels.quantize(x)
    return x


def weight_only_linear(x, weight, weight_scale, bias=None):
    """The layer with its weights multiplied out: differentiable by ``x``, in ``x``'s dtype, on any device."""
    weight = weight.astype(x.dtype) * weight_scale.astype(x.dtype).unsqueeze(1)
    y = paddle.matmul(x, weight, transpose_y=True)
    return y if bias is None else y + bias


def quantized_linear_reference(x, weight, weight_scale, bias=None):
    """What the integer kernels compute, in Paddle's operations on float32 (sums of a group are exact there)."""
    y = 0.0
    for start in range(0, x.shape[-1], GROUP):
        group, part = x[..., start : start + GROUP], weight[:, start : start + GROUP].astype("float32")
        low = group.min(axis=-1, keepdim=True)
        step = (group.max(axis=-1, keepdim=True) - low) / 255
        rounded = ((group - low) / paddle.where(step > 0, step, paddle.ones_like(step)) + 0.5).floor().clip(0, 255)
        y = y + step * paddle.matmul(rounded, part, transpose_y=True) + low * part.sum(axis=1)
    y = y * weight_scale
    return y if bias is None else y + bias
