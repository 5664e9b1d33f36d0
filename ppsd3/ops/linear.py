"""Linear layer with torch's weight layout.

``weight`` is ``[out_features, in_features]`` as in a diffusers file, so a checkpoint is mapped into the model and
saved from it without a transpose. ``paddle.nn.Linear`` keeps ``[in, out]``.
"""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

from ..utils.paddle_internals import has_hooks
from .activations import gelu
from .dispatch import native, operation
from .native import linear as kernels
from .quantized import QuantizedLinear, quantized_linear


class Linear(nn.Layer):
    """``y = x W^T + b``.

    Args:
        in_features, out_features: sizes of the last axis before and after.
        bias: whether there is a bias.

    Shapes: ``x [..., in_features]`` -> ``[..., out_features]``; ``weight [out_features, in_features]``,
    ``bias [out_features]`` or None.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features: int = in_features
        self.out_features: int = out_features
        bound = in_features**-0.5
        uniform = nn.initializer.Uniform(-bound, bound)  # torch.nn.Linear's own initialisation
        self.weight: Tensor = self.create_parameter([out_features, in_features], default_initializer=uniform)
        self.bias: Tensor | None = self.create_parameter([out_features], default_initializer=uniform) if bias else None

    @property
    def compute_dtype(self) -> paddle.dtype:
        """dtype of its input and output."""
        return self.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


@operation(native(kernels.linear), deciding=3)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``.

    Shapes: ``x [..., in]``, ``weight [out, in]``, ``bias [out]`` or None -> ``[..., out]``.
    """
    y = paddle.matmul(x, weight, transpose_y=True)
    return y if bias is None else y + bias


@operation(native(kernels.linear_gelu), deciding=3)
def _linear_gelu(x, weight, bias):
    return gelu(linear(x, weight, bias))


def linear_gelu(x: Tensor, layer: nn.Layer) -> Tensor:
    """``gelu(layer(x))``; one pass fewer over the wide activations where ``layer`` does what its weights say.

    That is, where it is of one of our own types and no subclass, and has no hook that must see the output.
    """
    if not has_hooks(layer):
        if type(layer) is QuantizedLinear:
            return quantized_linear(x, layer.weight, layer.weight_scale, layer.bias, gelu=True)
        if type(layer) is Linear and layer.bias is not None:
            return _linear_gelu(x, layer.weight, layer.bias)
    return gelu(layer(x))
