"""The autoencoder between pictures and latents: ``AutoencoderKL``.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", sections 3.1 and G;
signature and checkpoint names of diffusers' ``AutoencoderKL``. SD3 uses 16 latent channels, no quant convs, a scaling
factor of 1.5305 and a shift of 0.0609.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import paddle

from ..compilation import Compilable
from ..configuration_utils import register_to_config
from ..modeling_utils import ModelMixin
from ..ops.vision import Conv2D
from ..outputs import BaseOutput
from ..utils.checking import shown
from ..utils.config_types import BlocksOfOneSize, Groups, Pixels, Positive, Width
from ..utils.errors import ConfigError
from ..utils.random import Generator
from .tiling import Tileable
from .vae import Decoder, DecoderOutput, DiagonalGaussianDistribution, Encoder, check_number_of_sizes


@dataclass
class AutoencoderKLOutput(BaseOutput):
    """``latent_dist``: the posterior, a ``DiagonalGaussianDistribution`` over [B, latent_channels, H, W]."""

    latent_dist: Any


class AutoencoderKL(Compilable, Tileable, ModelMixin):
    """Variational autoencoder with a KL term: picture [B, 3, 8H, 8W] in [-1, 1] <-> latents [B, C, H, W].

    The factor 8 is ``2 ** (len(block_out_channels) - 1)`` (``spatial_factor``) for SD3's four blocks.

    Args:
        in_channels, out_channels: colour channels in and out. Default 3.
        down_block_types, up_block_types: one per entry of ``block_out_channels``; only
            "DownEncoderBlock2D" and "UpDecoderBlock2D" exist.
        block_out_channels: width at each resolution, full size first.
        layers_per_block: residual blocks per resolution in the encoder; the decoder has one more. Default 1.
        act_fn: only "silu".
        latent_channels: C. Default 4 (SD3: 16).
        norm_num_groups: groups of every group norm; divides every width.
        sample_size: picture side, in pixels, that the model was trained for; bounds the default tile.
        scaling_factor, shift_factor: see ``scale_latents``.
        latents_mean, latents_std: the same per channel, see ``scale_latents``.
        force_upcast: kept so that a configuration is saved as it was read; nothing acts on it. The flag asks
            for float32 decoding in place of float16, which the first SDXL VAE needed. SD3's does not, and diffusers'
            SD3 pipelines decode in the dtype of the weights too; ``vae.to(dtype="float32")`` does it by hand.
        use_quant_conv, use_post_quant_conv: 1x1 convolutions around the latents (SD3: neither).
        mid_block_add_attention: attention at the lowest resolution.

    Raises:
        ConfigError: an unsupported block type or activation, or lengths that do not match.
    """

    absent_features = ("down_block_out_channels", "up_block_out_channels")  # ppdiffusers' asymmetric ones
    _components = ("vae",)
    _output_class = DecoderOutput

    @register_to_config
    def __init__(
        self,
        in_channels: Width = 3,
        out_channels: Width = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[Width] = (64,),
        layers_per_block: BlocksOfOneSize = 1,
        act_fn: str = "silu",
        latent_channels: Width = 4,
        norm_num_groups: Groups = 32,
        sample_size: Pixels | tuple[Pixels, Pixels] = 32,
        scaling_factor: Positive = 0.18215,
        shift_factor: float | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[Positive] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        stack = (block_out_channels, layers_per_block, norm_num_groups, mid_block_add_attention)
        self.encoder = Encoder(in_channels, latent_channels, *stack)
        self.decoder = Decoder(latent_channels, out_channels, *stack)
        self.quant_conv = Conv2D(2 * latent_channels, 2 * latent_channels, 1) if use_quant_conv else None
        self.post_quant_conv = Conv2D(latent_channels, latent_channels, 1) if use_post_quant_conv else None

        self.gradient_checkpointing = False
        self._init_tiling(sample_size)

    # ------------------------------------------------------------------------------------------ picture <-> latents

    def encode(
        self, x: paddle.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Picture ``x [B, in_channels, 8H, 8W]`` -> ``.latent_dist`` over [B, C, H, W] (or a 1-tuple of it).

        Raises:
            InputError: wrong rank or channel count, or a side that is no multiple of ``spatial_factor``.
        """
        self._check_input(x, "encode", self.config.in_channels, return_dict, multiple_of=self.spatial_factor)
        posterior = DiagonalGaussianDistribution(self._by_slices(self._encode, x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: paddle.Tensor, return_dict: bool = True, generator: Generator | Sequence[Generator] | None = None
    ) -> DecoderOutput | tuple[paddle.Tensor]:
        """Latents ``z [B, C, H, W]``, unscaled -> ``.sample [B, out_channels, 8H, 8W]`` (or a 1-tuple of it).

        ``generator`` changes nothing: this decoder draws no noise. Callers written for decoders that do may pass it.

        Raises:
            InputError: wrong rank or channel count.
        """
        self._check_input(z, "decode", self.config.latent_channels, return_dict)
        sample = self._by_slices(self._decode, z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: paddle.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generator | Sequence[Generator] | None = None,
    ) -> DecoderOutput | tuple[paddle.Tensor]:
        """Encodes and decodes ``sample [B, in_channels, 8H, 8W]``; the latents are the posterior's mode, or a draw
        with ``generator`` if ``sample_posterior``."""
        posterior = self.encode(sample, return_dict=False)[0]
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict=return_dict)

    def scale_latents(self, z: paddle.Tensor) -> paddle.Tensor:
        """Latents as encoded -> latents as the diffusion model sees them: ``(z - shift) * scale``.

        ``shift`` is ``shift_factor`` (None is 0) and ``scale`` is ``scaling_factor``; with ``latents_mean`` and
        ``latents_std``, ``shift`` is the mean and ``scale`` is ``scaling_factor / std``, per channel.
        """
        shift, scale = self._shift_and_scale(z)
        return (z - shift) * scale

    def unscale_latents(self, z: paddle.Tensor) -> paddle.Tensor:
        """The inverse of ``scale_latents``, to be called before ``decode``: ``z / scale + shift``."""
        shift, scale = self._shift_and_scale(z)
        return z / scale + shift

    def _shift_and_scale(self, z):
        config = self.config
        if config.latents_mean is None:
            return config.shift_factor or 0.0, config.scaling_factor
        mean, std = (
            paddle.to_tensor(values, dtype=z.dtype).reshape([1, -1, 1, 1])
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, config.scaling_factor / std

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along a side: 8 for four blocks."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def _set_gradient_checkpointing(self, value):
        self.gradient_checkpointing = self.encoder.gradient_checkpointing = self.decoder.gradient_checkpointing = value

    # ----------------------------------------------------------------------------------------------------- internals

    def _encode_tile(self, x):
        moments = self._network("encoder", x)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def _decode_tile(self, z):
        return self._network("decoder", z if self.post_quant_conv is None else self.post_quant_conv(z))

    def _network(self, name, x):
        network = getattr(self, name)
        return self._graph(name, network, [[-1, x.shape[1], -1, -1]])(x) if self.is_compiled else network(x)


def _check_config(config):
    blocks = len(config.block_out_channels)
    check_number_of_sizes("block_out_channels", config.block_out_channels)
    for name, only in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        types = config[name]
        if len(types) != blocks:
            raise ConfigError(f"{name} has {len(types)} entries and block_out_channels {blocks}; give one per block.")
        for value in types:
            if value != only:
                raise ConfigError(f"{name} holds {shown(value)}; AutoencoderKL has only {only!r}.")
    if config.act_fn != "silu":
        raise ConfigError(f"act_fn={shown(config.act_fn)}; AutoencoderKL has only 'silu'.")
    for width in config.block_out_channels:
        if width % config.norm_num_groups:
            raise ConfigError(
                f"norm_num_groups={config.norm_num_groups} does not divide {width} of block_out_channels="
                f"{tuple(config.block_out_channels)}; choose a common divisor of all widths."
            )
    if (config.latents_mean is None) != (config.latents_std is None):
        raise ConfigError("latents_mean and latents_std go together; give both or neither.")
    if config.latents_mean is not None:
        if config.shift_factor:
            raise ConfigError("shift_factor and latents_mean both say what to subtract; give one of them.")
        for name in ("latents_mean", "latents_std"):
            if len(config[name]) != config.latent_channels:
                raise ConfigError(
                    f"{name} has {len(config[name])} values; it takes one per latent channel, {config.latent_channels}."
                )
