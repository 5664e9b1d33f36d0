"""Adaptive layer norm: the arithmetic by which timestep and pooled text steer a block (paper, section 4)."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ..utils.paddle_internals import fused, has_hooks
from . import proving
from .dispatch import FLOATS, Implementation, native, operation
from .native import norms as kernels
from .shapes import tracked


@operation(native(kernels.layer_norm))
def layer_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Layer norm over the last axis without weight or bias; statistics in fp32. Shape and dtype of ``x``."""
    return F.layer_norm(x, x.shape[-1:], epsilon=epsilon)


class LayerNorm(nn.LayerNorm):
    """:func:`layer_norm` as a layer: over the last axis, without weight or bias.

    Args:
        dim: size of the last axis.
        eps: added to the variance.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, epsilon=eps, weight_attr=False, bias_attr=False)
        self.epsilon: float = eps

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.epsilon)


class AffineLayerNorm(nn.LayerNorm):
    """``paddle.nn.LayerNorm`` over the last axis, with the right gradient where its weight is frozen.

    Paddle's own gradient on a CPU leaves out a weight that has none itself (2.6.2 to 3.3.1).

    Args:
        dim: size of the last axis.
        eps: added to the variance.
        bias: whether there is one.
    """

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(dim, epsilon=eps, bias_attr=None if bias else False)
        self.epsilon: float = eps

    def forward(self, input: Tensor) -> Tensor:
        is_left_out = tracked(input) and not tracked(self.weight)
        return self._by_parts(input) if is_left_out else super().forward(input)

    def _by_parts(self, x):
        weight: Any = self.weight
        scaled = layer_norm(x, self.epsilon) * weight
        return scaled if self.bias is None else scaled + self.bias


def _modulates(x, *vectors):
    """Whether the vectors have one row per batch item of ``x``, that is, nothing but S is broadcast."""
    return x.ndim == 3 and all(v.shape == [x.shape[0], x.shape[2]] for v in vectors)


def _norm_modulates(x, shift, scale, epsilon=1e-6):
    return _modulates(x, shift, scale)


def _by_items_modulates(x, shift, scale, epsilon=1e-6):
    return _modulates(x, shift, scale) and (tracked(scale) or not tracked(x))  # see AffineLayerNorm


def _by_items(x, shift, scale, epsilon=1e-6):
    """One batch item at a time, by the layer norm's own weight and bias: a tenth of the time on a CPU, and on a GPU two
    passes over the tokens."""
    items = zip(x.unbind(0), (1 + scale).unbind(0), shift.unbind(0))
    return paddle.stack([F.layer_norm(tokens, tokens.shape[-1:], w, b, epsilon) for tokens, w, b in items])


def _kind(x, shift, scale, epsilon=1e-6):
    return f"batch of {x.shape[0]}, width {x.shape[2]}"


def _sample(tensor, x, shift, scale, epsilon=1e-6):
    batch, _, width = x.shape
    return [tensor(batch, 1024, width), tensor(batch, width), tensor(batch, width), epsilon]


@operation(
    native(kernels.layer_norm_modulate, accepts=_norm_modulates),
    Implementation("paddle", "paddle", _by_items, "cpu", ("float32",), accepts=_by_items_modulates),
    Implementation(
        "by items",
        "paddle",
        _by_items,
        "gpu",
        FLOATS,
        gradients=False,
        accepts=_norm_modulates,
        proof=proving.Proof(_kind, _sample),
    ),
    deciding=3,
)
def layer_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, epsilon: float = 1e-6) -> Tensor:
    """``layer_norm(x) * (1 + scale) + shift``.

    Shapes: ``x [B, S, D]``, ``shift, scale [B, D]`` -> ``[B, S, D]``.
    """
    return modulate(F.layer_norm(x, x.shape[-1:], epsilon=epsilon), shift, scale)


def norm_modulate(x: Tensor, norm: nn.Layer, shift: Tensor, scale: Tensor) -> Tensor:
    """``norm(x) * (1 + scale) + shift``; shapes as in :func:`layer_norm_modulate`.

    In one pass where ``norm`` is a :class:`LayerNorm` without hooks that must see its output.
    """
    if type(norm) is LayerNorm and not has_hooks(norm):
        return layer_norm_modulate(x, shift, scale, norm.epsilon)
    return modulate(norm(x), shift, scale)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x * (1 + scale) + shift`` with ``x [B, S, D]`` and ``shift, scale [B, D]``."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def _gates(residual, gate, x):
    return residual.shape == x.shape and _modulates(x, gate)


def _expanded(residual, gate, x):
    """Paddle broadcasts a middle axis five times as fast as it multiplies so."""
    return residual + gate.unsqueeze(1).expand(x.shape) * x


@operation(
    native(kernels.gated_residual, accepts=_gates),
    Implementation("paddle", "paddle", _expanded, "cpu", ("float32",), accepts=_gates),
    deciding=3,
)
def gated_residual(residual: Tensor, gate: Tensor, x: Tensor) -> Tensor:
    """``residual + gate * x`` with ``residual, x [B, S, D]`` and ``gate [B, D]``."""
    return residual + gate.unsqueeze(1) * x


def _fused_rms_norm(x, weight, epsilon=1e-6):
    y = fused("fused_rms_norm")(x, weight, None, epsilon, begin_norm_axis=x.ndim - 1)
    return y[0] if isinstance(y, (tuple, list)) else y  # the other is the sum with a residual


def _rms_kind(x, weight, epsilon=1e-6):
    return f"width {x.shape[-1]}"


def _rms_sample(tensor, x, weight, epsilon=1e-6):
    return [tensor(*[1] * (x.ndim - 2), 4096, x.shape[-1]), tensor(x.shape[-1]), epsilon]


@operation(
    native(kernels.rms_norm),
    Implementation(
        "fused",
        "paddle",
        _fused_rms_norm,
        "gpu",
        FLOATS,
        gradients=False,
        proof=proving.Proof(_rms_kind, _rms_sample),
    ),
    deciding=2,
)
def rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> Tensor:
    """RMS norm over the last axis: variance in fp32, cast to the weight's dtype, then times ``weight [d]``."""
    variance = x.astype("float32").square().mean(axis=-1, keepdim=True)
    normalized = x * (variance + epsilon).rsqrt().astype(x.dtype)
    return normalized.astype(weight.dtype) * weight
