"""Convolutions of float32 pictures [B, C, H, W] on the CPU, each with its gradient.

With the prefix ``amx_`` products are made on AMX tiles.
"""

import paddle

from ..gradients import differentiable
from . import lib
from .tensors import pointer

_SAME, _NONE, _RIGHT_BOTTOM = (1, 1, 1, 1), (0, 0, 0, 0), (0, 1, 0, 1)


def supports_conv2d(x, weight, bias, added, stride, padding):
    """Whether :func:`conv2d` computes this: 3x3 with padding 1, 1x1, or 3x3 of stride 2 padded right and below."""
    kernel = tuple(weight.shape[2:])
    if kernel == (3, 3) and stride == 2 and tuple(padding) == _RIGHT_BOTTOM:
        return min(x.shape[2:]) >= 2
    return stride == 1 and (kernel, tuple(padding)) in (((3, 3), _SAME), ((1, 1), _NONE))


def conv2d(x, weight, bias, added, stride, padding, prefix=""):
    """Convolution of a geometry that :func:`supports_conv2d` accepts; ``bias`` and ``added`` may be None."""
    batch, channels, height, width = x.shape
    out, _, kernel, _ = weight.shape
    sizes = batch, channels, height, width, out, kernel, stride
    shape = [batch, out, height // stride, width // stride]
    names = f"{prefix}conv2d", f"{prefix}conv2d_backward_data", "conv2d_backward_weight"
    return _convolution(x, weight, bias, added, names=names, sizes=sizes, shape=shape)


def upsample_conv2d(x, weight, bias, stride, padding, prefix=""):
    """3x3 convolution of stride 1, padded by 1, of ``x`` upsampled by 2 by nearest neighbour, without upsampling it."""
    batch, channels, height, width = x.shape
    out = weight.shape[0]
    names = f"{prefix}upsample_conv2d", "upsample_conv2d_backward_data", "upsample_conv2d_backward_weight"
    sizes, shape = (batch, channels, height, width, out), [batch, out, 2 * height, 2 * width]
    return _convolution(x, weight, bias, names=names, sizes=sizes, shape=shape)


def _run(name, sizes, *tensors):
    getattr(lib(), "ppsd3_" + name)(*map(pointer, tensors), *sizes)


def _forward(keep, x, weight, *others, names, sizes, shape):
    y = paddle.empty(shape, dtype="float32")
    _run(names[0], sizes, x, weight, *others, y)
    return y, (x, weight)


def _backward(dy, wanted, x, weight, names, sizes, shape):
    dx = dweight = dbias = None
    if wanted[0]:
        dx = paddle.empty_like(x)
        _run(names[1], sizes, dy, weight, dx)
    if any(wanted[1:3]):
        dweight, dbias = paddle.empty_like(weight), paddle.empty([weight.shape[0]], dtype="float32")
        _run(names[2], sizes, x, dy, dweight, dbias)
    return dx, dweight, dbias, dy


_convolution = differentiable(_forward, _backward)
