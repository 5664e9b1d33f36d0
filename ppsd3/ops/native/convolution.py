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
    return _convolution(x, weight, bias, added, kernels=_Plain(x, weight, stride, prefix))


def upsample_conv2d(x, weight, bias, stride, padding, prefix=""):
    """3x3 convolution of stride 1, padded by 1, of ``x`` upsampled by 2 by nearest neighbour, without upsampling it."""
    return _convolution(x, weight, bias, kernels=_Upsampled(x, weight, prefix))


class _Plain:
    """A convolution: the kernels' names, the sizes they take, the shape of the result."""

    name = "conv2d"

    def __init__(self, x, weight, stride, prefix):
        batch, channels, height, width = x.shape
        out, _, kernel, _ = weight.shape
        self.prefix, self.sizes = prefix, (batch, channels, height, width, out, kernel, stride)
        self.output_shape = [batch, out, height // stride, width // stride]

    def forward(self, *operands):
        """``operands``: x, weight, bias and, for a plain convolution, what is added to it (or None)."""
        y = paddle.empty(self.output_shape, dtype="float32")
        return self.run(self.prefix + self.name, *operands, y)

    def backward_data(self, dy, weight, x):
        return self.run(self.prefix + "conv2d_backward_data", dy, weight, paddle.empty_like(x))

    def run(self, name, *tensors):
        """Calls a kernel on ``tensors``; returns the last one."""
        getattr(lib(), "ppsd3_" + name)(*map(pointer, tensors), *self.sizes)
        return tensors[-1]


class _Upsampled(_Plain):
    name = "upsample_conv2d"

    def __init__(self, x, weight, prefix):
        batch, channels, height, width = x.shape
        out = weight.shape[0]
        self.prefix, self.sizes = prefix, (batch, channels, height, width, out)
        self.output_shape = [batch, out, 2 * height, 2 * width]

    def backward_data(self, dy, weight, x):
        return self.run("upsample_conv2d_backward_data", dy, weight, paddle.empty_like(x))


def _forward(keep, x, weight, *others, kernels):
    return kernels.forward(x, weight, *others), (x, weight)


def _backward(dy, wanted, x, weight, kernels):
    dx = dweight = dbias = None
    if wanted[0]:
        dx = kernels.backward_data(dy, weight, x)
    if any(wanted[1:3]):
        dweight, dbias = paddle.empty_like(weight), paddle.empty([weight.shape[0]], dtype="float32")
        kernels.run(kernels.name + "_backward_weight", x, dy, dweight, dbias)
    return dx, dweight, dbias, dy


_convolution = differentiable(_forward, _backward)
