"""Linear layer with torch's weight layout.

``weight`` is ``[out_features, in_features]`` as in a diffusers file, so a checkpoint is mapped into the model and
saved from it without a transpose. ``paddle.nn.Linear`` keeps ``[in, out]``.
"""

from __future__ import annotations

import math

import paddle
from paddle import Tensor, nn

from ..utils.paddle_internals import fused, has_hooks
from . import proving
from .activations import gelu
from .dispatch import FLOATS, Implementation, native, operation
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


_FEW, _WIDE = 16, 2048  # rows of modulation or pooled text; the largest width of a trial


def _has_bias(x, weight, bias=None):
    return bias is not None


def _rows(x):
    return math.prod(x.shape[:-1])


def _kind(x, weight, bias=None):
    aligned = all(size % 8 == 0 for size in weight.shape)
    return ("few rows" if _rows(x) <= _FEW else "many rows") + ("" if aligned else ", of unaligned widths")


def _sample(tensor, x, weight, bias=None):
    out_features, in_features = (size if size <= _WIDE else _WIDE + size % 8 for size in weight.shape)
    rows = min(_rows(x), _FEW) if _rows(x) <= _FEW else 64 * _FEW
    return [tensor(1, rows, in_features), tensor(out_features, in_features), tensor(out_features)]


_PROOF = proving.Proof(_kind, _sample)


def _with_bias(x, weight, bias=None):
    """cuBLAS's product with the bias in its epilogue."""
    return fused("fused_matmul_bias")(x, weight, bias, transpose_y=True)


def _with_bias_and_gelu(x, weight, bias):
    """The same with GELU, which in cuBLAS is the tanh approximation."""
    return fused("fused_linear_activation")(x, weight, bias, trans_y=True, activation="gelu")


def _epilogue(function, **more):
    return Implementation("fused epilogue", "paddle", function, "gpu", FLOATS, gradients=False, proof=_PROOF, **more)


@operation(native(kernels.linear), _epilogue(_with_bias, accepts=_has_bias), deciding=3)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``.

    Shapes: ``x [..., in]``, ``weight [out, in]``, ``bias [out]`` or None -> ``[..., out]``.
    """
    y = paddle.matmul(x, weight, transpose_y=True)
    return y if bias is None else y + bias


@operation(native(kernels.linear_gelu), _epilogue(_with_bias_and_gelu), deciding=3)
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
