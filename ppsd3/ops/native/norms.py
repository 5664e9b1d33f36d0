"""Norms and modulation of float32 tensors on the CPU, each with its gradient."""

import math

import paddle
from paddle.autograd import PyLayer

from ...utils.paddle_internals import group_norm_settings
from ..shapes import tracked
from . import lib
from .tensors import dense, pointer, rows_of


def layer_norm(x, epsilon=1e-6):
    """Layer norm without weight or bias."""
    if tracked(x):
        return _LayerNorm.apply(x, epsilon)
    return _layer_norm(dense(x), None, None, epsilon)[0]


def layer_norm_modulate(x, shift, scale, epsilon=1e-6):
    """``layer_norm(x) * (1 + scale) + shift`` in one pass."""
    if tracked(x, shift, scale):
        return _LayerNormModulate.apply(x, shift, scale, epsilon)
    return _layer_norm(dense(x), dense(shift), dense(scale), epsilon)[0]


def _items(x, modulation):
    """Batch items, tokens of each, width; without modulation all rows are one item's."""
    rows, width = rows_of(x)
    items = 1 if modulation is None else rows_of(modulation)[0]
    return items, rows // items, width


def _layer_norm(x, shift, scale, epsilon, keep=False):
    out = paddle.empty_like(x)
    mean, rstd = (paddle.empty(x.shape[:-1], dtype="float32") if keep else None for _ in range(2))
    lib().ppsd3_layer_norm(*map(pointer, (x, shift, scale, out, mean, rstd)), *_items(x, scale), epsilon)
    return out, mean, rstd


def _layer_norm_backward(x, scale, mean, rstd, dout):
    dx = paddle.empty_like(x)
    dshift, dscale = (None if scale is None else paddle.empty_like(scale) for _ in range(2))
    pointers = map(pointer, (x, scale, mean, rstd, dout, dx, dshift, dscale))
    lib().ppsd3_layer_norm_backward(*pointers, *_items(x, scale))
    return dx, dshift, dscale


class _LayerNorm(PyLayer):
    @staticmethod
    def forward(ctx, x, epsilon):
        x = dense(x)
        out, mean, rstd = _layer_norm(x, None, None, epsilon, keep=True)
        ctx.save_for_backward(x, mean, rstd)
        return out

    @staticmethod
    def backward(ctx, dout):
        x, mean, rstd = ctx.saved_tensor()
        return _layer_norm_backward(x, None, mean, rstd, dense(dout))[0]


class _LayerNormModulate(PyLayer):
    @staticmethod
    def forward(ctx, x, shift, scale, epsilon):
        ctx.wanted = [not t.stop_gradient for t in (x, shift, scale)]
        x, shift, scale = dense(x), dense(shift), dense(scale)
        out, mean, rstd = _layer_norm(x, shift, scale, epsilon, keep=True)
        ctx.save_for_backward(x, scale, mean, rstd)
        return out

    @staticmethod
    def backward(ctx, dout):
        x, scale, mean, rstd = ctx.saved_tensor()
        gradients = _layer_norm_backward(x, scale, mean, rstd, dense(dout))
        return tuple(g if wanted else None for g, wanted in zip(gradients, ctx.wanted))


def gated_residual(residual, gate, x):
    """``residual + gate * x`` in one pass."""
    if tracked(residual, gate, x):
        return _GatedResidual.apply(residual, gate, x)
    return _gated_residual(dense(residual), dense(gate), dense(x))


def _gated_residual(residual, gate, x):
    out = paddle.empty_like(x)
    lib().ppsd3_gated_residual(*map(pointer, (residual, gate, x, out)), *_items(x, gate))
    return out


class _GatedResidual(PyLayer):
    @staticmethod
    def forward(ctx, residual, gate, x):
        ctx.wanted = [not t.stop_gradient for t in (residual, gate, x)]
        residual, gate, x = dense(residual), dense(gate), dense(x)
        ctx.save_for_backward(gate, x)
        return _gated_residual(residual, gate, x)

    @staticmethod
    def backward(ctx, dout):
        gate, x = ctx.saved_tensor()
        dout, dx, dgate = dense(dout), paddle.empty_like(x), paddle.empty_like(gate)
        lib().ppsd3_gated_residual_backward(*map(pointer, (gate, x, dout, dx, dgate)), *_items(x, gate))
        return tuple(g if wanted else None for g, wanted in zip((dout, dgate, dx), ctx.wanted))


def rms_norm(x, weight, epsilon=1e-6):
    """``x / sqrt(mean(x^2) + epsilon) * weight`` over the last axis."""
    if tracked(x, weight):
        return _RMSNorm.apply(x, weight, epsilon)
    return _rms_norm(dense(x), dense(weight), epsilon)


def _rms_norm(x, weight, epsilon):
    out = paddle.empty_like(x)
    lib().ppsd3_rms_norm(*map(pointer, (x, weight, out)), *rows_of(x), epsilon)
    return out


class _RMSNorm(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, epsilon):
        ctx.wanted, ctx.epsilon = (not x.stop_gradient, not weight.stop_gradient), epsilon
        x, weight = dense(x), dense(weight)
        ctx.save_for_backward(x, weight)
        return _rms_norm(x, weight, epsilon)

    @staticmethod
    def backward(ctx, dout):
        x, weight = ctx.saved_tensor()
        dout, dx, dweight = dense(dout), paddle.empty_like(x), paddle.empty_like(weight)
        lib().ppsd3_rms_norm_backward(*map(pointer, (x, weight, dout, dx, dweight)), *rows_of(x), ctx.epsilon)
        return tuple(g if wanted else None for g, wanted in zip((dx, dweight), ctx.wanted))


def group_norm_silu(x, weight, bias, norm):
    """``silu(norm(x))`` for an ``nn.GroupNorm``."""
    return group_norm(x, weight, bias, *group_norm_settings(norm), True)


def group_norm(x, weight, bias, groups, epsilon, silu):
    """Group norm of ``x [B, C, ...]``, followed by SiLU if ``silu``."""
    if tracked(x, weight, bias):
        return _GroupNorm.apply(x, weight, bias, groups, epsilon, silu)
    return _group_norm(dense(x), dense(weight), dense(bias), groups, epsilon, silu)[0]


def _group_norm(x, weight, bias, groups, epsilon, silu):
    y = paddle.empty_like(x)
    moments = paddle.empty([2, x.shape[0], groups], dtype="float32")  # mean and 1 / standard deviation
    lib().ppsd3_group_norm(*map(pointer, (x, weight, bias, y, moments)), *_planes(x), groups, silu, epsilon)
    return y, moments


def _planes(x):
    batch, channels = x.shape[:2]
    return batch, channels, math.prod(x.shape[2:])


class _GroupNorm(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, epsilon, silu):
        ctx.wanted, ctx.groups, ctx.silu = [not t.stop_gradient for t in (x, weight, bias)], groups, silu
        x, weight, bias = dense(x), dense(weight), dense(bias)
        y, moments = _group_norm(x, weight, bias, groups, epsilon, silu)
        ctx.save_for_backward(x, weight, bias, moments)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, moments = ctx.saved_tensor()
        gradients = [paddle.empty_like(t) for t in (x, weight, bias)]
        pointers = map(pointer, (x, weight, bias, moments, dense(dy), *gradients))
        lib().ppsd3_group_norm_backward(*pointers, *_planes(x), ctx.groups, ctx.silu)
        return tuple(g if wanted else None for g, wanted in zip(gradients, ctx.wanted))
