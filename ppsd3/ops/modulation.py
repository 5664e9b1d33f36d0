"""Adaptive layer norm: the arithmetic by which timestep and pooled text steer a block (paper, section 4)."""

import paddle.nn.functional as F


def layer_norm(x, epsilon=1e-6):
    """Layer norm over the last axis without weight or bias; statistics in fp32. Shape and dtype of ``x``."""
    return F.layer_norm(x, x.shape[-1:], epsilon=epsilon)


def layer_norm_modulate(x, shift, scale, epsilon=1e-6):
    """``layer_norm(x) * (1 + scale) + shift``.

    Shapes: ``x [B, S, D]``, ``shift, scale [B, D]`` -> ``[B, S, D]``.
    """
    return modulate(layer_norm(x, epsilon), shift, scale)


def modulate(x, shift, scale):
    """``x * (1 + scale) + shift`` with ``x [B, S, D]`` and ``shift, scale [B, D]``."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def gated_residual(residual, gate, x):
    """``residual + gate * x`` with ``residual, x [B, S, D]`` and ``gate [B, D]``."""
    return residual + gate.unsqueeze(1) * x


def rms_norm(x, weight, epsilon=1e-6):
    """RMS norm over the last axis: variance in fp32, cast to the weight's dtype, then times ``weight [d]``."""
    variance = x.astype("float32").square().mean(axis=-1, keepdim=True)
    normalized = x * (variance + epsilon).rsqrt().astype(x.dtype)
    return normalized.astype(weight.dtype) * weight
