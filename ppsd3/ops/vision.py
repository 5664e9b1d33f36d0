"""Image kernels of the autoencoder: convolution, group norm with SiLU, nearest upsampling. Tensors are [B, C, H, W]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ..utils.paddle_internals import flags, has_hooks
from . import onednn, proving
from .adapted import AdaptedWeights, base_of
from .dispatch import FLOATS, Implementation, native, onednn as by_onednn, operation
from .linear import Linear
from .native import convolution as kernels, norms

# in * out channels from which oneDNN's convolution outruns our direct one. Measured, GFLOP/s per core forward, ours and
# oneDNN's: 256 to 256 channels 97 and 90, 512 to 256 93 and 101, 512 to 512 94 and 112.
_WIDE = 512 * 256


class Conv2D(nn.Conv2D):
    """``paddle.nn.Conv2D`` with torch's initialisation, computed by ``conv2d`` below.

    The initialisation is uniform in +-1/sqrt(fan_in), weights and bias alike. Paddle's own is He-normal, whose weights
    are 2.4 times wider; a VAE trained from it starts far from what the published recipes assume. ``weight`` is
    [out, in, kh, kw], as in a diffusers file.

    Args:
        padding: zeros on every side, or at the top, bottom, left and right.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | Sequence[int] = 0,
        bias: bool = True,
    ) -> None:
        bound = (in_channels * kernel_size * kernel_size) ** -0.5
        uniform = nn.initializer.Uniform(-bound, bound)
        attributes = {"weight_attr": uniform, "bias_attr": uniform if bias else False}
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, **attributes)
        self.window = stride, ((padding,) * 4 if isinstance(padding, int) else tuple(padding))

    def forward(self, x: Tensor, upsample: bool = False, added: Tensor | None = None) -> Tensor:
        """The convolution of ``x`` plus ``added``; if ``upsample``, that of ``upsample_nearest_2x(x)`` alone."""
        if upsample:
            return upsample_conv2d(x, self.weight, self.bias, *self.window)
        return conv2d(x, self.weight, self.bias, added, *self.window)


def _by_onednn(x, weight, bias, added, stride, padding):
    y = onednn.conv2d(x, weight, bias, stride, padding)
    return y if added is None else y + added


def _has_bias(x, weight, bias, *_):
    return bias is not None


def _is_same_3x3(x, weight, bias, added, stride, padding):
    return weight.shape[2:] == [3, 3] and stride == 1 and tuple(padding) == (1, 1, 1, 1)


def _upsamples_same_3x3(x, weight, bias, stride, padding):
    return _is_same_3x3(x, weight, bias, None, stride, padding)


def _is_wide(x, weight, bias, added, stride, padding):
    direct = weight.shape[2:] != [3, 3] or stride != 1  # else Winograd's, twice as fast as either
    return direct and weight.shape[0] * weight.shape[1] >= _WIDE


_met: set[tuple[Any, ...]] = set()  # sizes of convolutions on a GPU


def _are_met_again(x, weight, bias, added, stride, padding):
    """Whether these sizes come at least a second time, so that a search is likely to pay."""
    sizes = (x.dtype, *x.shape, *weight.shape, stride, *padding)
    return sizes in _met or bool(_met.add(sizes))


def _searched(x, weight, bias, added, stride, padding):
    """With cuDNN's search for the fastest algorithm, which Paddle keeps for each size."""
    with flags(FLAGS_cudnn_exhaustive_search=True):
        y = F.conv2d(x, weight, bias, stride, list(padding))
    return y if added is None else y + added


def _kind(x, weight, bias, added, stride, padding):
    out, channels, height, width = weight.shape
    return f"{channels} to {out} channels, {height}x{width}, stride {stride}"


def _sample(tensor, x, weight, bias, added, stride, padding):
    out, channels, height, width = weight.shape
    picture, bias = tensor(1, channels, 32, 32), None if bias is None else tensor(out)
    return [picture, tensor(out, channels, height, width), bias, None, stride, padding]


@operation(
    by_onednn(_by_onednn, "onednn, wide", accepts=_has_bias, pays=_is_wide),
    native(partial(kernels.conv2d, prefix="amx_"), "amx", ("amx",), accepts=_is_same_3x3),
    native(kernels.conv2d, accepts=kernels.supports_conv2d),
    by_onednn(_by_onednn, accepts=_has_bias),
    Implementation(
        "searched",
        "paddle",
        _searched,
        "gpu",
        FLOATS,
        gradients=False,
        pays=_are_met_again,
        proof=proving.Proof(_kind, _sample),
    ),
    deciding=4,
)
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    stride: int,
    padding: Sequence[int],
) -> Tensor:
    """Convolution plus ``added``.

    Shapes: ``x [B, in, H, W]``, ``weight [out, in, kh, kw]``, ``bias [out]`` or None, ``added`` None or as the result:
    ``[B, out, H', W']``. ``padding``: zeros at the top, bottom, left and right.
    """
    y = F.conv2d(x, weight, bias, stride, list(padding))
    return y if added is None else y + added


@operation(
    native(partial(kernels.upsample_conv2d, prefix="amx_"), "amx", ("amx",), accepts=_upsamples_same_3x3),
    native(kernels.upsample_conv2d, accepts=_upsamples_same_3x3),
    deciding=3,
)
def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Sequence[int]) -> Tensor:
    """:func:`conv2d` of ``upsample_nearest_2x(x)``."""
    return conv2d(upsample_nearest_2x(x), weight, bias, None, stride, padding)


def _windows_as_rows(x, layer):
    """Tokens are never transposed: ten times faster on a CPU."""
    if isinstance(layer, AdaptedWeights):
        return layer.through(partial(_windows_as_rows, x))
    out, _, side, _ = layer.weight.shape
    weight = layer.weight.reshape([out, -1])
    y = paddle.matmul(F.unfold(x, side, side), weight, transpose_x=True, transpose_y=True)
    return y if layer.bias is None else y + layer.bias


def _is_plain_convolution(x, layer):
    return type(base_of(layer)) is nn.Conv2D and not has_hooks(layer) and not has_hooks(base_of(layer))


@operation(Implementation("paddle", "paddle", _windows_as_rows, "cpu", graphs=False, accepts=_is_plain_convolution))
def patch_tokens(x: Tensor, layer: nn.Layer) -> Tensor:
    """``layer`` (an ``nn.Conv2D`` whose stride is its kernel's side p) on x [B, C, H, W] -> [B, (H/p)(W/p), out]."""
    return layer(x).flatten(2).transpose([0, 2, 1])


@operation(native(norms.group_norm_silu), deciding=3)
def _group_norm_silu(x, weight, bias, norm):
    return F.silu(norm(x))


def group_norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """``silu(norm(x))``: what precedes every 3x3 convolution of the autoencoder."""
    return F.silu(norm(x)) if has_hooks(norm) else _group_norm_silu(x, norm.weight, norm.bias, norm)


def _by_gemm(x):
    """By a matrix of zeros and ones that writes both copies of a row at once: 2 to 10 times faster than copies.

    The work grows with the square of the width, so wider rows are copied.
    """
    b, c, h, w = x.shape
    columns = paddle.repeat_interleave(paddle.eye(w, dtype=x.dtype), 2, axis=1)  # [W, 2W]
    doubled = paddle.matmul(x.reshape([-1, w]), paddle.concat([columns, columns], axis=1))
    return doubled.reshape([b, c, 2 * h, 2 * w])


def _by_copies(x):
    """2 to 4 times faster than ``F.interpolate`` on a CPU."""
    b, c, h, w = x.shape
    return x.reshape([b, c, h, 1, w, 1]).expand([b, c, h, 2, w, 2]).reshape([b, c, 2 * h, 2 * w])


def _by_stacking(x):
    """In graphs, whose sizes are open: Paddle Inference's oneDNN has no ``F.interpolate`` by a factor."""
    wide = paddle.stack([x, x], axis=4).flatten(3)  # [B, C, H, 2W]
    return paddle.stack([wide, wide], axis=3).flatten(2, 3)


@operation(
    Implementation("gemm", "paddle", _by_gemm, "cpu", ("float32", "float64"), pays=lambda x: x.shape[3] <= 128),
    Implementation("copies", "paddle", _by_copies, graphs=False),
    Implementation("stacking", "paddle", _by_stacking, "cpu"),
)
def upsample_nearest_2x(x: Tensor) -> Tensor:
    """Each pixel becomes a 2x2 block: [B, C, H, W] -> [B, C, 2H, 2W], exactly."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _as_convolution(x, weight, bias):
    return kernels.conv2d(x.unsqueeze(2), weight.unsqueeze([2, 3]), bias, None, 1, (0, 0, 0, 0)).squeeze(2)


@operation(native(_as_convolution, accepts=_has_bias), deciding=3)
def _linear_channels_first(x, weight, bias):
    y = paddle.matmul(weight, x)
    return y if bias is None else y + bias.unsqueeze(-1)


def linear_channels_first(x: Tensor, layer: nn.Layer) -> Tensor:
    """``layer`` (a linear layer) along the channels of ``x [B, C, N]`` -> ``[B, out, N]``.

    A plain ``ops.Linear`` needs no transpose; any other (in int8, with adapters) is called as it is.
    """
    if type(layer) is Linear and not has_hooks(layer):
        return _linear_channels_first(x, layer.weight, layer.bias)
    return layer(x.transpose([0, 2, 1])).transpose([0, 2, 1])


def attention_channels_first(query: Tensor, key: Tensor, value: Tensor, max_scores: int = 2**26) -> Tensor:
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
