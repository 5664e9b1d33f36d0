"""The tiny autoencoder that stands in for the large one where a quick look will do: ``AutoencoderTiny``.

Source: Ollin Boer Bohan's TAESD (github.com/madebyollin/taesd), whose TAESD3 goes with SD3's latents; signature and
checkpoint names of diffusers' ``AutoencoderTiny``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import paddle
from paddle import nn

from ..configuration_utils import register_to_config
from ..modeling_utils import ModelMixin
from ..ops.gradients import recomputed
from ..ops.shapes import tracked
from ..ops.vision import Conv2D
from ..outputs import BaseOutput
from ..utils.checking import shown
from ..utils.config_types import BlocksOfOneSize, Positive, Width
from ..utils.errors import ConfigError
from ..utils.random import Generator
from .tiling import Tileable
from .vae import DecoderOutput, DiagonalGaussianDistribution, check_number_of_sizes

_ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.Silu, "swish": nn.Silu, "gelu": nn.GELU, "mish": nn.Mish}
_SOFT_LIMIT = 3.0  # latents beyond it are squeezed before they are decoded: tanh(z / 3) * 3
_DEFAULT_TILE = 512  # pixels


@dataclass
class AutoencoderTinyOutput(BaseOutput):
    """``latents [B, C, H, W]``."""

    latents: paddle.Tensor

    @property
    def latent_dist(self) -> DiagonalGaussianDistribution:
        """The latents as a distribution without variance, for callers that know ``AutoencoderKL``."""
        return DiagonalGaussianDistribution(paddle.concat([self.latents] * 2, axis=1), deterministic=True)


class AutoencoderTiny(Tileable, ModelMixin):
    """Picture [B, 3, 8H, 8W] in [-1, 1] <-> latents [B, C, H, W] as the diffusion model sees them, by 3x3 convolutions
    of 64 channels: some thirty times less work than SD3's own VAE, and somewhat blurred.

    Args:
        in_channels, out_channels: colour channels. Default 3.
        encoder_block_out_channels, decoder_block_out_channels: width at each resolution; in each of the
            two, all are equal. Default (64, 64, 64, 64).
        act_fn: "relu" (default), "silu", "gelu" or "mish".
        upsample_fn: only "nearest".
        latent_channels: C. Default 4 (TAESD3: 16).
        upsampling_scaling_factor: only 2.
        num_encoder_blocks: residual blocks at each resolution, full size first.
        num_decoder_blocks: the same, smallest size first.
        latent_magnitude, latent_shift: range of latents as bytes, used by ``forward``. Defaults 3, 0.5.
        force_upcast: kept; nothing acts on it.
        scaling_factor, shift_factor: see ``scale_latents``; 1 and 0, since latents need no scaling.

    Raises:
        ConfigError: what only diffusers' signature has, or lengths and widths that do not match.
    """

    ignored_config_keys = ("block_out_channels",)  # diffusers derives it and saves it
    _components = ("vae",)
    # Whether a generator is drawn from when a picture is encoded.
    samples_latents: ClassVar[bool] = False

    @register_to_config
    def __init__(
        self,
        in_channels: Width = 3,
        out_channels: Width = 3,
        encoder_block_out_channels: Sequence[Width] = (64, 64, 64, 64),
        decoder_block_out_channels: Sequence[Width] = (64, 64, 64, 64),
        act_fn: str = "relu",
        upsample_fn: str = "nearest",
        latent_channels: Width = 4,
        upsampling_scaling_factor: int = 2,
        num_encoder_blocks: Sequence[BlocksOfOneSize] = (1, 3, 3, 3),
        num_decoder_blocks: Sequence[BlocksOfOneSize] = (3, 3, 3, 1),
        latent_magnitude: Positive = 3,
        latent_shift: float = 0.5,
        force_upcast: bool = False,
        scaling_factor: Positive = 1.0,
        shift_factor: float | None = 0.0,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        self.encoder = _Encoder(in_channels, latent_channels, num_encoder_blocks, encoder_block_out_channels, act_fn)
        self.decoder = _Decoder(latent_channels, out_channels, num_decoder_blocks, decoder_block_out_channels, act_fn)
        # What pipelines read the factor between pixels and latents from.
        self.register_to_config(block_out_channels=tuple(decoder_block_out_channels))
        self._init_tiling(_DEFAULT_TILE)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** (len(self.config.num_encoder_blocks) - 1)

    def encode(self, x: paddle.Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[paddle.Tensor]:
        """Picture ``x [B, in_channels, 8H, 8W]`` -> ``.latents [B, C, H, W]`` (or a 1-tuple of it).

        Raises:
            InputError: wrong rank or channel count, or a side that is no multiple of ``spatial_factor``.
        """
        self._check_input(x, "encode", self.config.in_channels, return_dict, multiple_of=self.spatial_factor)
        latents = self._by_slices(self._encode, x)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(
        self, x: paddle.Tensor, generator: Generator | Sequence[Generator] | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[paddle.Tensor]:
        """Latents ``x [B, C, H, W]`` -> ``.sample [B, out_channels, 8H, 8W]`` (or a 1-tuple of it).

        ``generator`` changes nothing: no noise is drawn.

        Raises:
            InputError: wrong rank or channel count.
        """
        self._check_input(x, "decode", self.config.latent_channels, return_dict)
        sample = self._by_slices(self._decode, x)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: paddle.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[paddle.Tensor]:
        """Encodes ``sample``, rounds the latents to bytes as a file of four-channel pictures would, and decodes."""
        reach, shift = 2 * self.config.latent_magnitude, self.config.latent_shift
        latents = self.encode(sample, return_dict=False)[0]
        rounded = paddle.round(paddle.clip(latents / reach + shift, 0, 1) * 255) / 255
        return self.decode((rounded - shift) * reach, return_dict=return_dict)

    def scale_latents(self, z: paddle.Tensor) -> paddle.Tensor:
        """As ``AutoencoderKL.scale_latents``: latents as encoded -> as the diffusion model sees them."""
        return (z - self.config.shift_factor) * self.config.scaling_factor

    def unscale_latents(self, z: paddle.Tensor) -> paddle.Tensor:
        """The inverse of ``scale_latents``, to be called before ``decode``."""
        return z / self.config.scaling_factor + self.config.shift_factor

    def _set_gradient_checkpointing(self, value):
        self.gradient_checkpointing = self.encoder.gradient_checkpointing = self.decoder.gradient_checkpointing = value

    def _encode_tile(self, x):
        return self.encoder(x)

    def _decode_tile(self, z):
        return self.decoder(z)


class _Block(nn.Layer):
    """``relu(conv(x) + x)``; three convolutions with the activation between them."""

    def __init__(self, channels, act_fn):
        super().__init__()
        activation = _ACTIVATIONS[act_fn]
        self.conv = nn.Sequential(
            Conv2D(channels, channels, 3, padding=1),
            activation(),
            Conv2D(channels, channels, 3, padding=1),
            activation(),
            Conv2D(channels, channels, 3, padding=1),
        )

    def forward(self, x):
        return nn.functional.relu(self.conv[4](self.conv[:4](x), added=x))


class _UpsampledConv2D(Conv2D):
    """A 3x3 convolution of its input at twice the size."""

    def forward(self, x):
        return super().forward(x, upsample=True)


class _Layers(nn.Layer):
    """A sequence of layers under the name that checkpoints have."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.gradient_checkpointing = False

    def _run(self, x):
        again = self.gradient_checkpointing and self.training and tracked(x, *self.parameters())
        for layer in self.layers:
            x = recomputed(layer, x) if again else layer(x)
        return x


class _Encoder(_Layers):
    """Picture in [-1, 1] -> latents. Each resolution after the first begins with a strided convolution."""

    def __init__(self, in_channels, latent_channels, num_blocks, widths, act_fn):
        layers = []
        for i, (count, width) in enumerate(zip(num_blocks, widths)):
            first = Conv2D(in_channels, width, 3, padding=1)
            layers.append(Conv2D(width, width, 3, stride=2, padding=1, bias=False) if i else first)
            layers += [_Block(width, act_fn) for _ in range(count)]
        super().__init__([*layers, Conv2D(widths[-1], latent_channels, 3, padding=1)])

    def forward(self, x):
        return self._run((x + 1) / 2)


class _Decoder(_Layers):
    """Latents -> picture in about [-1, 1]. Each resolution but the last ends with a convolution at twice its size."""

    def __init__(self, latent_channels, out_channels, num_blocks, widths, act_fn):
        layers = [Conv2D(latent_channels, widths[0], 3, padding=1), _ACTIVATIONS[act_fn]()]
        for i, (count, width) in enumerate(zip(num_blocks, widths)):
            layers += [_Block(width, act_fn) for _ in range(count)]
            if i < len(num_blocks) - 1:
                # The upsampling, which is a layer of its own elsewhere, leaves its number empty here.
                layers += [nn.Identity(), _UpsampledConv2D(width, width, 3, padding=1, bias=False)]
        super().__init__([*layers, Conv2D(widths[-1], out_channels, 3, padding=1)])

    def forward(self, z):
        z = paddle.tanh(z / _SOFT_LIMIT) * _SOFT_LIMIT
        return self._run(z) * 2 - 1


def _check_config(config):
    for side in ("encoder", "decoder"):
        widths, blocks = config[f"{side}_block_out_channels"], config[f"num_{side}_blocks"]
        check_number_of_sizes(f"{side}_block_out_channels", widths)
        if len(widths) != len(blocks):
            raise ConfigError(
                f"num_{side}_blocks has {len(blocks)} entries and {side}_block_out_channels {len(widths)}."
            )
        if len(set(widths)) != 1:
            raise ConfigError(f"{side}_block_out_channels is {tuple(widths)}; all widths of one side have to be equal.")
    if len(config.num_encoder_blocks) != len(config.num_decoder_blocks):
        raise ConfigError("num_encoder_blocks and num_decoder_blocks differ in length: sizes would not come back.")
    if config.act_fn not in _ACTIVATIONS:
        raise ConfigError(f"act_fn={shown(config.act_fn)}; AutoencoderTiny has {', '.join(_ACTIVATIONS)}.")
    if (config.upsample_fn, config.upsampling_scaling_factor) != ("nearest", 2):
        raise ConfigError(
            f"upsample_fn={shown(config.upsample_fn)} by {config.upsampling_scaling_factor}; AutoencoderTiny has only "
            "'nearest' by 2 (upsampling_scaling_factor)."
        )
