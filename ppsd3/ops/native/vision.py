"""The autoencoder's kernels as functions of Paddle tensors, each with its gradient.

All tensors are float32 on CPU (:func:`ppsd3.ops.native.usable`), pictures [B, C, H, W].
"""

import paddle
from paddle.autograd import PyLayer

from . import lib
from .interface import _dense, _pointer, _tracked

SIGNATURES = {  # p pointer, n size, f float
    "conv2d": "ppppnnnnnnn",
    "conv2d_backward_data": "pppnnnnnnn",
    "conv2d_backward_weight": "ppppnnnnnnn",
    "group_norm": "ppppppnnnnnf",
    "group_norm_backward": "pppppppppnnnnn",
    "upsample_2x": "ppnnn",
    "upsample_2x_backward": "ppnnn",
}

_SAME, _NONE, _RIGHT_BOTTOM = (1, 1, 1, 1), (0, 0, 0, 0), (0, 1, 0, 1)


def supports_conv2d(x, weight, stride, padding):
    """Whether :func:`conv2d` computes this: 3x3 with padding 1, 1x1, or 3x3 of stride 2 padded right and below."""
    kernel = tuple(weight.shape[2:])
    if kernel == (3, 3) and stride == 2 and tuple(padding) == _RIGHT_BOTTOM:
        return min(x.shape[2:]) >= 2
    return stride == 1 and (kernel, tuple(padding)) in (((3, 3), _SAME), ((1, 1), _NONE))


def conv2d(x, weight, bias, stride):
    """Convolution of a geometry that :func:`supports_conv2d` accepts; ``bias`` may be None."""
    if _tracked(x, weight, bias):
        return _Conv2D.apply(x, weight, bias, stride)
    return _conv2d(_dense(x), _dense(weight), None if bias is None else _dense(bias), stride)


def _geometry(x_shape, weight, stride):
    batch, channels, height, width = x_shape
    return batch, channels, height, width, weight.shape[0], weight.shape[2], stride


def _conv2d(x, weight, bias, stride):
    batch, _, height, width = x.shape
    y = paddle.empty([batch, weight.shape[0], height // stride, width // stride], dtype="float32")
    lib().ppsd3_conv2d(*map(_pointer, (x, weight, bias, y)), *_geometry(x.shape, weight, stride))
    return y


class _Conv2D(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, stride):
        ctx.wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
        x, weight, bias = _dense(x), _dense(weight), None if bias is None else _dense(bias)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.inputs = stride, 2 if bias is None else 3
        return _conv2d(x, weight, bias, stride)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensor()
        wants_x, wants_weight, wants_bias = ctx.wanted
        geometry = _geometry(x.shape, weight, ctx.stride)
        dy, dx, dweight, dbias = _dense(dy), None, None, None
        if wants_x:
            dx = paddle.empty_like(x)
            lib().ppsd3_conv2d_backward_data(*map(_pointer, (dy, weight, dx)), *geometry)
        if wants_weight or wants_bias:
            dweight, dbias = paddle.empty_like(weight), paddle.empty([weight.shape[0]], dtype="float32")
            lib().ppsd3_conv2d_backward_weight(*map(_pointer, (x, dy, dweight, dbias)), *geometry)
        gradients = dx, dweight if wants_weight else None, dbias if wants_bias else None
        return gradients[: ctx.inputs]


def group_norm(x, weight, bias, groups, epsilon, silu):
    """Group norm of ``x [B, C, ...]``, followed by SiLU if ``silu``."""
    if _tracked(x, weight, bias):
        return _GroupNorm.apply(x, weight, bias, groups, epsilon, silu)
    return _group_norm(_dense(x), _dense(weight), _dense(bias), groups, epsilon, silu)[0]


def _group_norm(x, weight, bias, groups, epsilon, silu):
    y = paddle.empty_like(x)
    mean, rstd = (paddle.empty([x.shape[0], groups], dtype="float32") for _ in range(2))
    lib().ppsd3_group_norm(*map(_pointer, (x, weight, bias, y, mean, rstd)), *_planes(x), groups, silu, epsilon)
    return y, mean, rstd


def _planes(x):
    batch, channels = x.shape[:2]
    return batch, channels, x.size // (batch * channels)


class _GroupNorm(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, epsilon, silu):
        ctx.wanted, ctx.groups, ctx.silu = [not t.stop_gradient for t in (x, weight, bias)], groups, silu
        x, weight, bias = _dense(x), _dense(weight), _dense(bias)
        y, mean, rstd = _group_norm(x, weight, bias, groups, epsilon, silu)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, mean, rstd = ctx.saved_tensor()
        gradients = [paddle.empty_like(t) for t in (x, weight, bias)]
        pointers = map(_pointer, (x, weight, bias, mean, rstd, _dense(dy), *gradients))
        lib().ppsd3_group_norm_backward(*pointers, *_planes(x), ctx.groups, ctx.silu)
        return tuple(g if wanted else None for g, wanted in zip(gradients, ctx.wanted))


def upsample_nearest_2x(x):
    """Each pixel becomes a 2x2 block: [B, C, H, W] -> [B, C, 2H, 2W]."""
    return _Upsample.apply(x) if _tracked(x) else _upsample(_dense(x))


def _upsample(x):
    batch, channels, height, width = x.shape
    y = paddle.empty([batch, channels, 2 * height, 2 * width], dtype="float32")
    lib().ppsd3_upsample_2x(x.data_ptr(), y.data_ptr(), batch * channels, height, width)
    return y


class _Upsample(PyLayer):
    @staticmethod
    def forward(ctx, x):
        return _upsample(_dense(x))

    @staticmethod
    def backward(ctx, dy):
        batch, channels, height, width = dy.shape
        dy, dx = _dense(dy), paddle.empty([batch, channels, height // 2, width // 2], dtype="float32")
        lib().ppsd3_upsample_2x_backward(dy.data_ptr(), dx.data_ptr(), batch * channels, height // 2, width // 2)
        return dx
