"""Image kernels of the autoencoder: convolution, group norm with SiLU, nearest upsampling. Tensors are [B, C, H, W]."""

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..utils.paddle_internals import group_norm_settings, has_hooks
from . import native, onednn
from .linear import Linear
from .native import vision as kernels

# in * out channels from which oneDNN's convolution outruns our direct one. Measured, GFLOP/s per core forward, ours and
# oneDNN's: 256 to 256 channels 97 and 90, 512 to 256 93 and 101, 512 to 512 94 and 112.
_WIDE = 512 * 256


class Conv2D(nn.Conv2D):
    """``paddle.nn.Conv2D`` with torch's initialisation, computed by ``conv2d`` below.

    The initialisation is uniform in +-1/sqrt(fan_in), weights and bias alike. Paddle's own is He-normal, whose weights
    are 2.4 times wider; a VAE trained from it starts far from what the published recipes assume. ``weight`` is
    [out, in, kh, kw], as in a diffusers file.

    Args:
        in_channels, out_channels, kernel_size, stride (int)
        padding (int or 4 ints): zeros on every side, or at the top, bottom, left and right.
        bias (bool): default True.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, bias=True):
        bound = (in_channels * kernel_size * kernel_size) ** -0.5
        uniform = nn.initializer.Uniform(-bound, bound)
        attributes = {"weight_attr": uniform, "bias_attr": uniform if bias else False}
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, **attributes)
        self.window = stride, ((padding,) * 4 if isinstance(padding, int) else tuple(padding))

    def forward(self, x, upsample=False, added=None):
        """The convolution of ``x`` plus ``added``; if ``upsample``, that of ``upsample_nearest_2x(x)`` alone."""
        if not upsample:
            return conv2d(x, self.weight, self.bias, *self.window, added)
        same_3x3 = self.weight.shape[2:] == [3, 3] and self.window == (1, (1, 1, 1, 1))
        if same_3x3 and native.usable(x, self.weight, self.bias):
            return kernels.upsample_conv2d(x, self.weight, self.bias)
        return conv2d(upsample_nearest_2x(x), self.weight, self.bias, *self.window)


def conv2d(x, weight, bias, stride, padding, added=None):
    """Convolution: ``x [B, in, H, W]``, ``weight [out, in, kh, kw]``, ``bias [out]`` or None -> [B, out, H', W'].

    ``padding`` is four ints: zeros at the top, bottom, left and right. ``added`` (of the result's shape) is added.
    """
    direct = weight.shape[2:] != [3, 3] or stride != 1  # else Winograd's, twice as fast as either
    wide = direct and bias is not None and weight.shape[0] * weight.shape[1] >= _WIDE and onednn.usable(x, weight, bias)
    if not wide and kernels.supports_conv2d(x, weight, stride, padding) and native.usable(x, weight, bias):
        return kernels.conv2d(x, weight, bias, stride, added)
    if wide or (bias is not None and onednn.usable(x, weight, bias)):
        y = onednn.conv2d(x, weight, bias, stride, padding)
    else:
        y = F.conv2d(x, weight, bias, stride, list(padding))
    return y if added is None else y + added


def patch_tokens(x, layer):
    """``layer`` (an ``nn.Conv2D`` whose stride is its kernel's side p) on ``x [B, C, H, W]`` -> [B, (H/p)(W/p), out].

    On a CPU the windows are multiplied as rows, so that tokens are never transposed: ten times faster.
    """
    windows_are_rows = paddle.in_dynamic_mode() and type(layer) is nn.Conv2D and not has_hooks(layer)
    if not windows_are_rows or not x.place.is_cpu_place():
        return layer(x).flatten(2).transpose([0, 2, 1])
    out, _, side, _ = layer.weight.shape
    weight = layer.weight.reshape([out, -1])
    y = paddle.matmul(F.unfold(x, side, side), weight, transpose_x=True, transpose_y=True)
    return y if layer.bias is None else y + layer.bias


def group_norm_silu(x, norm):
    """``silu(norm(x))`` for an ``nn.GroupNorm``: what precedes every 3x3 convolution of the autoencoder."""
    if native.usable(x, norm.weight, norm.bias):
        return kernels.group_norm(x, norm.weight, norm.bias, *group_norm_settings(norm), True)
    return F.silu(norm(x))


def upsample_nearest_2x(x):
    """Each pixel becomes a 2x2 block: [B, C, H, W] -> [B, C, 2H, 2W], exactly.

    On a CPU rows of up to 128 pixels go through a GEMM with a matrix of zeros and ones that writes both copies of a
    row at once: 2 to 10 times faster than a broadcast copy, which in turn is 2 to 4 times faster than
    ``F.interpolate``. The GEMM's work grows with the square of the width, so wider rows are copied.
    """
    if not paddle.in_dynamic_mode():  # sizes are open there
        return F.interpolate(x, scale_factor=2, mode="nearest")
    b, c, h, w = x.shape
    if x.place.is_cpu_place() and x.dtype in (paddle.float32, paddle.float64) and w <= 128:
        columns = paddle.repeat_interleave(paddle.eye(w, dtype=x.dtype), 2, axis=1)  # [W, 2W]
        doubled = paddle.matmul(x.reshape([-1, w]), paddle.concat([columns, columns], axis=1))
    else:
        doubled = x.reshape([b, c, h, 1, w, 1]).expand([b, c, h, 2, w, 2])
    return doubled.reshape([b, c, 2 * h, 2 * w])


def linear_channels_first(x, layer):
    """``layer`` (a linear layer) along the channels of ``x [B, C, N]`` -> ``[B, out, N]``.

    A plain ``ops.Linear`` needs no transpose; any other (in int8, with adapters) is called as it is.
    """
    if type(layer) is not Linear:
        return layer(x.transpose([0, 2, 1])).transpose([0, 2, 1])
    if layer.bias is not None and native.usable(x, layer.weight, layer.bias):  # a 1x1 convolution
        weight = layer.weight.unsqueeze([2, 3])
        return kernels.conv2d(x.unsqueeze(2), weight, layer.bias, 1).squeeze(2)
    y = paddle.matmul(layer.weight, x)
    return y if layer.bias is None else y + layer.bias.unsqueeze(-1)


def attention_channels_first(query, key, value, max_scores=2**26):
    """Single-head softmax attention on ``[B, C, N]`` tensors -> ``[B, C, N]``; scale ``C ** -0.5``.

    The GEMMs read the operands transposed, so nothing is moved. Queries are taken in chunks that keep the score
    matrix within ``max_scores`` numbers (2**26 is 256 MB in float32; all N x N scores of a 1024x1024 picture, N =
    16384, would be 1 GB).
    """
    b, c, n = query.shape
    query = query * c**-0.5

    def attend(some):
        scores = paddle.matmul(some, key, transpose_x=True)  # [B, chunk, N]
        return paddle.matmul(value, F.softmax(scores, axis=-1), transpose_y=True)  # [B, C, chunk]

    chunk = max(1, min(n, max_scores // (b * n)))
    if chunk == n or not paddle.in_dynamic_mode():  # a static graph cannot count its chunks
        return attend(query)
    return paddle.concat([attend(query[:, :, start : start + chunk]) for start in range(0, n, chunk)], axis=-1)
