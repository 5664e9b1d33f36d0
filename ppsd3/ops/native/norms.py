"""Norms and modulation of float32 tensors on the CPU, each with its gradient."""

import math

import paddle

from ...utils.paddle_internals import group_norm_settings
from ..gradients import differentiable
from . import lib
from .tensors import pointer, rows_of


def layer_norm(x, epsilon=1e-6):
    """Layer norm without weight or bias."""
    return _layer_norm(x, None, None, epsilon=epsilon)


def layer_norm_modulate(x, shift, scale, epsilon=1e-6):
    """``layer_norm(x) * (1 + scale) + shift`` in one pass."""
    return _layer_norm(x, shift, scale, epsilon=epsilon)


def _items(x, modulation):
    """Batch items, tokens of each, width; without modulation all rows are one item's."""
    rows, width = rows_of(x)
    items = 1 if modulation is None else rows_of(modulation)[0]
    return items, rows // items, width


def _layer_norm_forward(keep, x, shift, scale, epsilon):
    out = paddle.empty_like(x)
    mean, rstd = (paddle.empty(x.shape[:-1], dtype="float32") if keep else None for _ in range(2))
    lib().ppsd3_layer_norm(*map(pointer, (x, shift, scale, out, mean, rstd)), *_items(x, scale), epsilon)
    return out, (x, scale, mean, rstd)


def _layer_norm_backward(dout, wanted, x, scale, mean, rstd, epsilon):
    dx = paddle.empty_like(x)
    dshift, dscale = (None if scale is None else paddle.empty_like(scale) for _ in range(2))
    pointers = map(pointer, (x, scale, mean, rstd, dout, dx, dshift, dscale))
    lib().ppsd3_layer_norm_backward(*pointers, *_items(x, scale))
    return dx, dshift, dscale


_layer_norm = differentiable(_layer_norm_forward, _layer_norm_backward)


def _gated_residual_forward(keep, residual, gate, x):
    out = paddle.empty_like(x)
    lib().ppsd3_gated_residual(*map(pointer, (residual, gate, x, out)), *_items(x, gate))
    return out, (gate, x)


def _gated_residual_backward(dout, wanted, gate, x):
    dx, dgate = paddle.empty_like(x), paddle.empty_like(gate)
    lib().ppsd3_gated_residual_backward(*map(pointer, (gate, x, dout, dx, dgate)), *_items(x, gate))
    return dout, dgate, dx


gated_residual = differentiable(_gated_residual_forward, _gated_residual_backward)  # residual + gate * x, in one pass


def rms_norm(x, weight, epsilon=1e-6):
    """``x / sqrt(mean(x^2) + epsilon) * weight`` over the last axis."""
    return _rms_norm(x, weight, epsilon=epsilon)


def _rms_norm_forward(keep, x, weight, epsilon):
    out = paddle.empty_like(x)
    lib().ppsd3_rms_norm(*map(pointer, (x, weight, out)), *rows_of(x), epsilon)
    return out, (x, weight)


def _rms_norm_backward(dout, wanted, x, weight, epsilon):
    dx, dweight = paddle.empty_like(x), paddle.empty_like(weight)
    lib().ppsd3_rms_norm_backward(*map(pointer, (x, weight, dout, dx, dweight)), *rows_of(x), epsilon)
    return dx, dweight


_rms_norm = differentiable(_rms_norm_forward, _rms_norm_backward)


def group_norm_silu(x, weight, bias, norm):
    """``silu(norm(x))`` for an ``nn.GroupNorm``."""
    return group_norm(x, weight, bias, *group_norm_settings(norm), True)


def group_norm(x, weight, bias, groups, epsilon, silu):
    """Group norm of ``x [B, C, ...]``, followed by SiLU if ``silu``."""
    return _group_norm(x, weight, bias, groups=groups, epsilon=epsilon, silu=silu)


def _planes(x):
    batch, channels = x.shape[:2]
    return batch, channels, math.prod(x.shape[2:])


def _group_norm_forward(keep, x, weight, bias, groups, epsilon, silu):
    y = paddle.empty_like(x)
    moments = paddle.empty([2, x.shape[0], groups], dtype="float32")  # mean and 1 / standard deviation
    lib().ppsd3_group_norm(*map(pointer, (x, weight, bias, y, moments)), *_planes(x), groups, silu, epsilon)
    return y, (x, weight, bias, moments)


def _group_norm_backward(dy, wanted, x, weight, bias, moments, groups, epsilon, silu):
    gradients = [paddle.empty_like(t) for t in (x, weight, bias)]
    pointers = map(pointer, (x, weight, bias, moments, dy, *gradients))
    lib().ppsd3_group_norm_backward(*pointers, *_planes(x), groups, silu)
    return gradients


_group_norm = differentiable(_group_norm_forward, _group_norm_backward)
