"""The autoencoder's kernels as functions of Paddle tensors, each with its gradient.

All tensors are float32 on CPU (:func:`ppsd3.ops.native.usable`), pictures [B, C, H, W].
"""

import paddle
from paddle.autograd import PyLayer

from . import lib
from .interface import _dense, _pointer, _tracked
from .products import has_amx

SIGNATURES = {  # p pointer, n size, f float
    "conv2d": "pppppnnnnnnn",
    "conv2d_backward_data": "pppnnnnnnn",
    "conv2d_backward_weight": "ppppnnnnnnn",
    "upsample_conv2d": "ppppnnnnn",
    "upsample_conv2d_backward_data": "pppnnnnn",
    "upsample_conv2d_backward_weight": "ppppnnnnn",
    "group_norm": "pppppnnnnnf",
    "group_norm_backward": "ppppppppnnnnn",
}
OPTIONAL_SIGNATURES = {  # only where the CPU has AMX
    "amx_conv2d": "pppppnnnnnnn",
    "amx_conv2d_backward_data": "pppnnnnnnn",
    "amx_upsample_conv2d": "ppppnnnnn",
}

_SAME, _NONE, _RIGHT_BOTTOM = (1, 1, 1, 1), (0, 0, 0, 0), (0, 1, 0, 1)


def supports_conv2d(x, weight, stride, padding):
    """Whether :func:`conv2d` computes this: 3x3 with padding 1, 1x1, or 3x3 of stride 2 padded right and below."""
    kernel = tuple(weight.shape[2:])
    if kernel == (3, 3) and stride == 2 and tuple(padding) == _RIGHT_BOTTOM:
        return min(x.shape[2:]) >= 2
    return stride == 1 and (kernel, tuple(padding)) in (((3, 3), _SAME), ((1, 1), _NONE))


def conv2d(x, weight, bias, stride, added=None):
    """Convolution of a geometry that :func:`supports_conv2d` accepts; ``bias`` and ``added`` may be None."""
    return _Plain(x, weight, stride)(x, weight, bias, added)


def upsample_conv2d(x, weight, bias):
    """3x3 convolution, padded by 1, of ``x`` upsampled by 2 by nearest neighbour, without upsampling it."""
    return _Upsampled(x, weight)(x, weight, bias)


class _Plain:
    """A convolution: the kernels' names, the sizes they take, the shape of the result."""

    name = "ppsd3_conv2d"

    def __init__(self, x, weight, stride):
        batch, channels, height, width = x.shape
        out, _, kernel, _ = weight.shape
        self.sizes = batch, channels, height, width, out, kernel, stride
        self.output_shape = [batch, out, height // stride, width // stride]

    def __call__(self, *operands):
        """``operands``: x, weight, bias and, for a plain convolution, what is added to it (or None)."""
        if _tracked(*operands):
            return _Convolution.apply(self, *operands)
        return self.forward(*operands)

    def forward(self, *operands):
        y = paddle.empty(self.output_shape, dtype="float32")
        return self.run("", *(None if t is None else _dense(t) for t in operands), y)

    def run(self, suffix, *tensors):
        """Calls a kernel on ``tensors``; returns the last one."""
        name = self.name + suffix
        on_tiles = name.replace("ppsd3_", "ppsd3_amx_")
        if has_amx() and hasattr(lib(), on_tiles):
            name = on_tiles
        getattr(lib(), name)(*map(_pointer, tensors), *self.sizes)
        return tensors[-1]


class _Upsampled(_Plain):
    name = "ppsd3_upsample_conv2d"

    def __init__(self, x, weight):
        batch, channels, height, width = x.shape
        out = weight.shape[0]
        self.sizes = batch, channels, height, width, out
        self.output_shape = [batch, out, 2 * height, 2 * width]


class _Convolution(PyLayer):
    @staticmethod
    def forward(ctx, kernels, x, weight, bias, *added):
        ctx.kernels = kernels
        ctx.wanted = [None if t is None else not t.stop_gradient for t in (x, weight, bias, *added)]
        x, weight = _dense(x), _dense(weight)
        ctx.save_for_backward(x, weight)
        return kernels.forward(x, weight, bias, *added)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensor()
        dy, dx, dweight, dbias = _dense(dy), None, None, None
        if ctx.wanted[0]:
            dx = ctx.kernels.run("_backward_data", dy, weight, paddle.empty_like(x))
        if any(ctx.wanted[1:3]):
            dweight, dbias = paddle.empty_like(weight), paddle.empty([weight.shape[0]], dtype="float32")
            ctx.kernels.run("_backward_weight", x, dy, dweight, dbias)
        gradients = zip((dx, dweight, dbias, dy), ctx.wanted)
        return tuple(g if wanted else None for g, wanted in gradients if wanted is not None)


def group_norm(x, weight, bias, groups, epsilon, silu):
    """Group norm of ``x [B, C, ...]``, followed by SiLU if ``silu``."""
    if _tracked(x, weight, bias):
        return _GroupNorm.apply(x, weight, bias, groups, epsilon, silu)
    return _group_norm(_dense(x), _dense(weight), _dense(bias), groups, epsilon, silu)[0]


def _group_norm(x, weight, bias, groups, epsilon, silu):
    y = paddle.empty_like(x)
    moments = paddle.empty([2, x.shape[0], groups], dtype="float32")  # mean and 1 / standard deviation
    lib().ppsd3_group_norm(*map(_pointer, (x, weight, bias, y, moments)), *_planes(x), groups, silu, epsilon)
    return y, moments


def _planes(x):
    batch, channels = x.shape[:2]
    return batch, channels, x.size // (batch * channels)


class _GroupNorm(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, epsilon, silu):
        ctx.wanted, ctx.groups, ctx.silu = [not t.stop_gradient for t in (x, weight, bias)], groups, silu
        x, weight, bias = _dense(x), _dense(weight), _dense(bias)
        y, moments = _group_norm(x, weight, bias, groups, epsilon, silu)
        ctx.save_for_backward(x, weight, bias, moments)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, moments = ctx.saved_tensor()
        gradients = [paddle.empty_like(t) for t in (x, weight, bias)]
        pointers = map(_pointer, (x, weight, bias, moments, _dense(dy), *gradients))
        lib().ppsd3_group_norm_backward(*pointers, *_planes(x), ctx.groups, ctx.silu)
        return tuple(g if wanted else None for g, wanted in zip(gradients, ctx.wanted))
