"""Adaptive layer norm: the arithmetic by which timestep and pooled text steer a block (paper, section 4).

Each ``*_reference`` is the definition in Paddle's own operations; the function of the same name without the suffix
takes the native kernel where there is one for the tensors at hand.
"""

import paddle
import paddle.nn.functional as F

from . import native
from .native import interface as kernels
from .shapes import plain_on_cpu


def layer_norm(x, epsilon=1e-6):
    """Layer norm over the last axis without weight or bias; statistics in fp32. Shape and dtype of ``x``."""
    return kernels.layer_norm(x, epsilon) if native.usable(x) else layer_norm_reference(x, epsilon)


def layer_norm_reference(x, epsilon=1e-6):
    """See :func:`layer_norm`."""
    return F.layer_norm(x, x.shape[-1:], epsilon=epsilon)


def layer_norm_modulate(x, shift, scale, epsilon=1e-6):
    """``layer_norm(x) * (1 + scale) + shift``.

    Shapes: ``x [B, S, D]``, ``shift, scale [B, D]`` -> ``[B, S, D]``.
    """
    if _modulates(x, shift, scale):
        if native.usable(x, shift, scale):
            return kernels.layer_norm_modulate(x, shift, scale, epsilon)
        if plain_on_cpu(x, shift, scale):
            return layer_norm_modulate_by_items(x, shift, scale, epsilon)
    return layer_norm_modulate_reference(x, shift, scale, epsilon)


def layer_norm_modulate_by_items(x, shift, scale, epsilon=1e-6):
    """One batch item at a time, by the layer norm's own weight and bias: a tenth of the time on a CPU."""
    items = zip(x.unbind(0), (1 + scale).unbind(0), shift.unbind(0))
    return paddle.stack([F.layer_norm(tokens, tokens.shape[-1:], w, b, epsilon) for tokens, w, b in items])


def layer_norm_modulate_reference(x, shift, scale, epsilon=1e-6):
    """See :func:`layer_norm_modulate`."""
    return modulate(layer_norm_reference(x, epsilon), shift, scale)


def modulate(x, shift, scale):
    """``x * (1 + scale) + shift`` with ``x [B, S, D]`` and ``shift, scale [B, D]``."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def gated_residual(residual, gate, x):
    """``residual + gate * x`` with ``residual, x [B, S, D]`` and ``gate [B, D]``."""
    if residual.shape == x.shape and _modulates(x, gate):
        if native.usable(residual, gate, x):
            return kernels.gated_residual(residual, gate, x)
        if plain_on_cpu(residual, gate, x):  # Paddle broadcasts a middle axis five times as fast as it multiplies so
            return residual + gate.unsqueeze(1).expand(x.shape) * x
    return gated_residual_reference(residual, gate, x)


def gated_residual_reference(residual, gate, x):
    """See :func:`gated_residual`."""
    return residual + gate.unsqueeze(1) * x


def rms_norm(x, weight, epsilon=1e-6):
    """RMS norm over the last axis: variance in fp32, cast to the weight's dtype, then times ``weight [d]``."""
    if native.usable(x, weight):
        return kernels.rms_norm(x, weight, epsilon)
    return rms_norm_reference(x, weight, epsilon)


def rms_norm_reference(x, weight, epsilon=1e-6):
    """See :func:`rms_norm`."""
    variance = x.astype("float32").square().mean(axis=-1, keepdim=True)
    normalized = x * (variance + epsilon).rsqrt().astype(x.dtype)
    return normalized.astype(weight.dtype) * weight


def _modulates(x, *vectors):
    """Whether the vectors have one row per batch item of ``x``, that is, nothing but S is broadcast."""
    return x.ndim == 3 and all(v.shape == [x.shape[0], x.shape[2]] for v in vectors)
