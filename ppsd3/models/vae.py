"""Encoder and decoder of the KL autoencoder, and the Gaussian between them.

Module names are those of diffusers' ``models/autoencoders/vae.py``, so its checkpoints load as they are. Every block
takes and gives [B, channels, height, width].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import nn

from ..ops import Linear
from ..ops.gradients import recomputed
from ..ops.shapes import shape_of, tracked
from ..ops.vision import (
    Conv2D,
    attention_channels_first,
    group_norm_silu,
    linear_channels_first,
)
from ..outputs import BaseOutput
from ..utils.errors import ConfigError
from ..utils.random import Generator

_MOST_SIZES = 8
NORM_EPSILON = 1e-6  # the published VAEs were trained with it; group norm's usual default is 1e-5


@dataclass
class DecoderOutput(BaseOutput):
    """``sample [B, out_channels, 8H, 8W]``: the decoded picture, nominally in [-1, 1] but not clipped."""

    sample: Any


def check_number_of_sizes(name: str, widths: Sequence[int]) -> None:
    """Raises ConfigError unless there are 1 to 8 ``widths``, given as ``name``: each but the first halves a picture."""
    if not 1 <= len(widths) <= _MOST_SIZES:
        raise ConfigError(f"{name} has {len(widths)} entries; an autoencoder has 1 to {_MOST_SIZES} sizes.")


class DiagonalGaussianDistribution:
    """The posterior q(z|x): one independent Gaussian per latent value.

    Args:
        parameters: [B, 2C, H, W], mean and log-variance, concatenated on the channels.
        deterministic: variance zero, so that ``sample`` gives the mean.

    Attributes: ``mean``, ``logvar`` (clamped to [-30, 20]), ``std``, ``var``, each [B, C, H, W].
    """

    def __init__(self, parameters: paddle.Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = paddle.chunk(parameters, 2, axis=1)
        self.logvar = paddle.clip(logvar, -30.0, 20.0)
        if deterministic:
            self.std = self.var = paddle.zeros_like(self.mean)
        else:
            self.std, self.var = paddle.exp(0.5 * self.logvar), paddle.exp(self.logvar)

    def sample(self, generator: Generator | Sequence[Generator] | None = None) -> paddle.Tensor:
        """``mean + std * noise`` [B, C, H, W]; ``generator`` is whatever ``ppsd3.utils.random.randn`` takes.

        A deterministic posterior draws no noise, so that the generator stays where it is.
        """
        from ..utils.random import randn

        if self.deterministic:
            return self.mean
        return self.mean + self.std * randn(self.mean.shape, generator, self.mean.dtype)

    def mode(self) -> paddle.Tensor:
        """The mean, which is also the most likely value."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> paddle.Tensor:
        """KL divergence in nats, summed over each row's values [B]: from ``other``, or from N(0, 1) when None."""
        if self.deterministic:
            return paddle.zeros([self.mean.shape[0]], self.mean.dtype)
        if other is None:
            terms = self.mean**2 + self.var - 1.0 - self.logvar
        else:
            terms = (self.mean - other.mean) ** 2 / other.var + self.var / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(axis=[1, 2, 3])

    def nll(self, sample: paddle.Tensor, axis: Sequence[int] = (1, 2, 3)) -> paddle.Tensor:
        """Negative log-likelihood of ``sample`` in nats, summed over ``axis`` (by default one value per row, [B])."""
        if self.deterministic:
            return paddle.zeros([self.mean.shape[0]], self.mean.dtype)
        log_two_pi = 1.8378770664093453
        return 0.5 * (log_two_pi + self.logvar + (sample - self.mean) ** 2 / self.var).sum(axis=list(axis))


class ResnetBlock2D(nn.Layer):
    """``x + conv2(silu(norm2(conv1(silu(norm1(x))))))``; a 1x1 ``conv_shortcut`` when the channel count changes."""

    def __init__(self, in_channels: int, out_channels: int, norm_num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels, epsilon=NORM_EPSILON)
        self.conv1 = Conv2D(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels, epsilon=NORM_EPSILON)
        self.conv2 = Conv2D(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = Conv2D(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        hidden = self.conv1(group_norm_silu(x, self.norm1))
        residual = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return self.conv2(group_norm_silu(hidden, self.norm2), added=residual)


class Downsample2D(nn.Layer):
    """Halves height and width with a strided 3x3 convolution, padded on the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2D(channels, channels, 3, stride=2, padding=(0, 1, 0, 1))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.conv(x)


class Upsample2D(nn.Layer):
    """Doubles height and width by nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2D(channels, channels, 3, padding=1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.conv(x, upsample=True)


class AttentionBlock(nn.Layer):
    """Single-head self-attention over all positions, with group norm before it and a residual around it.

    The work stays in [B, C, N], N = height * width, so the picture is never transposed. Linear layers keep the names
    ``to_q, to_k, to_v, to_out.0`` of the checkpoints.
    """

    def __init__(self, channels: int, norm_num_groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(norm_num_groups, channels, epsilon=NORM_EPSILON)
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = nn.LayerList([Linear(channels, channels)])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        hidden = self.group_norm(x).flatten(2)  # [B, C, N]
        query, key, value = (linear_channels_first(hidden, layer) for layer in (self.to_q, self.to_k, self.to_v))
        hidden = linear_channels_first(attention_channels_first(query, key, value), self.to_out[0])
        return x + hidden.reshape(shape_of(x))


class MidBlock2D(nn.Layer):
    """Residual block, attention (optional), residual block, at the lowest resolution."""

    def __init__(self, channels: int, norm_num_groups: int, add_attention: bool) -> None:
        super().__init__()
        self.attentions = nn.LayerList([AttentionBlock(channels, norm_num_groups)] if add_attention else [])
        self.resnets = nn.LayerList([ResnetBlock2D(channels, channels, norm_num_groups) for _ in range(2)])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class DownEncoderBlock2D(nn.Layer):
    """``num_layers`` residual blocks, then (but in the last block) a downsampler."""

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, norm_num_groups: int, add_downsample: bool
    ) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, num_layers, norm_num_groups)
        self.downsamplers = nn.LayerList([Downsample2D(out_channels)] if add_downsample else [])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpDecoderBlock2D(nn.Layer):
    """``num_layers`` residual blocks, then (but in the last block) an upsampler."""

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, norm_num_groups: int, add_upsample: bool
    ) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, num_layers, norm_num_groups)
        self.upsamplers = nn.LayerList([Upsample2D(out_channels)] if add_upsample else [])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Layer):
    """Picture [B, in_channels, 8H, 8W] -> moments [B, 2 * latent_channels, H, W] (8 for four blocks).

    Args:
        in_channels, latent_channels: colours, and channels of the latents.
        block_out_channels: width of each resolution, full size first.
        layers_per_block: residual blocks per resolution (the decoder has one more).
        norm_num_groups: groups of every group norm.
        mid_block_add_attention: attention at the lowest resolution.
    """

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        mid_block_add_attention: bool,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        widths, last = [block_out_channels[0], *block_out_channels], block_out_channels[-1]
        self.conv_in = Conv2D(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.LayerList(
            [
                DownEncoderBlock2D(before, after, layers_per_block, norm_num_groups, i < len(block_out_channels) - 1)
                for i, (before, after) in enumerate(zip(widths, block_out_channels))
            ]
        )
        self.mid_block = MidBlock2D(last, norm_num_groups, mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, last, epsilon=NORM_EPSILON)
        self.conv_out = Conv2D(last, 2 * latent_channels, 3, padding=1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = _run(self, (*self.down_blocks, self.mid_block), self.conv_in(x))
        return self.conv_out(group_norm_silu(x, self.conv_norm_out))


class Decoder(nn.Layer):
    """Latents [B, latent_channels, H, W] -> picture [B, out_channels, 8H, 8W]; arguments as for ``Encoder``."""

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        mid_block_add_attention: bool,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        outputs = list(reversed(block_out_channels))
        widths, last = [outputs[0], *outputs], outputs[-1]
        self.conv_in = Conv2D(latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock2D(widths[0], norm_num_groups, mid_block_add_attention)
        self.up_blocks = nn.LayerList(
            [
                UpDecoderBlock2D(before, after, layers_per_block + 1, norm_num_groups, i < len(outputs) - 1)
                for i, (before, after) in enumerate(zip(widths, outputs))
            ]
        )
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, last, epsilon=NORM_EPSILON)
        self.conv_out = Conv2D(last, out_channels, 3, padding=1)

    def forward(self, z: paddle.Tensor) -> paddle.Tensor:
        x = _run(self, (self.mid_block, *self.up_blocks), self.conv_in(z))
        return self.conv_out(group_norm_silu(x, self.conv_norm_out))


def _resnets(in_channels, out_channels, num_layers, norm_num_groups):
    inputs = [in_channels] + [out_channels] * (num_layers - 1)
    return nn.LayerList([ResnetBlock2D(width, out_channels, norm_num_groups) for width in inputs])


def _run(owner, blocks, x):
    """``x`` through ``blocks``, each recomputed in the backward pass if ``owner.gradient_checkpointing``."""
    again = owner.gradient_checkpointing and tracked(x, *owner.parameters())
    for block in blocks:
        x = recomputed(block, x) if again else block(x)
    return x
