"""The autoencoder between pictures and latents: ``AutoencoderKL``.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", sections 3.1 and G;
signature and checkpoint names of diffusers' ``AutoencoderKL``. SD3 uses 16 latent channels, no quant convs, a scaling
factor of 1.5305 and a shift of 0.0609.
"""

from dataclasses import dataclass
from typing import Any

import paddle

from ..compilation import Compilable
from ..configuration_utils import register_to_config
from ..modeling_utils import ModelMixin
from ..ops.vision import Conv2D
from ..outputs import BaseOutput
from ..utils.errors import ConfigError, InputError
from .vae import Decoder, DecoderOutput, DiagonalGaussianDistribution, Encoder

_MAX_DEFAULT_TILE = 512  # pixels; SD3's sample_size of 1024 as a tile would leave a 1024x1024 picture in one piece


@dataclass
class AutoencoderKLOutput(BaseOutput):
    """``latent_dist``: the posterior, a ``DiagonalGaussianDistribution`` over [B, latent_channels, H, W]."""

    latent_dist: Any


class AutoencoderKL(Compilable, ModelMixin):
    """Variational autoencoder with a KL term: picture [B, 3, 8H, 8W] in [-1, 1] <-> latents [B, C, H, W].

    The factor 8 is ``2 ** (len(block_out_channels) - 1)`` (``spatial_factor``) for SD3's four blocks.

    Args:
        in_channels, out_channels (int): colour channels in and out. Default 3.
        down_block_types, up_block_types (tuple of str): one per entry of ``block_out_channels``; only
            "DownEncoderBlock2D" and "UpDecoderBlock2D" exist.
        block_out_channels (tuple of int): width at each resolution, full size first. Default (64,).
        layers_per_block (int): residual blocks per resolution in the encoder; the decoder has one more. Default 1.
        act_fn (str): only "silu".
        latent_channels (int): C. Default 4 (SD3: 16).
        norm_num_groups (int): groups of every group norm; divides every width. Default 32.
        sample_size (int): picture side, in pixels, that the model was trained for; bounds the default tile.
        scaling_factor (float), shift_factor (float or None): see ``scale_latents``.
        latents_mean, latents_std (tuple of C floats or None): the same per channel, see ``scale_latents``.
        force_upcast (bool): kept so that a configuration is saved as it was read; nothing acts on it. The flag asks
            for float32 decoding in place of float16, which the first SDXL VAE needed. SD3's does not, and diffusers'
            SD3 pipelines decode in the dtype of the weights too; ``vae.to(dtype="float32")`` does it by hand.
        use_quant_conv, use_post_quant_conv (bool): 1x1 convolutions around the latents (SD3: neither).
        mid_block_add_attention (bool): attention at the lowest resolution. Default True.

    Raises:
        ConfigError: an unsupported block type or activation, or lengths that do not match.
    """

    _components = ("vae",)

    @register_to_config
    def __init__(
        self,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(64,),
        layers_per_block=1,
        act_fn="silu",
        latent_channels=4,
        norm_num_groups=32,
        sample_size=32,
        scaling_factor=0.18215,
        shift_factor=None,
        latents_mean=None,
        latents_std=None,
        force_upcast=True,
        use_quant_conv=True,
        use_post_quant_conv=True,
        mid_block_add_attention=True,
    ):
        super().__init__()
        _check_config(self.config)
        stack = (block_out_channels, layers_per_block, norm_num_groups, mid_block_add_attention)
        self.encoder = Encoder(in_channels, latent_channels, *stack)
        self.decoder = Decoder(latent_channels, out_channels, *stack)
        self.quant_conv = Conv2D(2 * latent_channels, 2 * latent_channels, 1) if use_quant_conv else None
        self.post_quant_conv = Conv2D(latent_channels, latent_channels, 1) if use_post_quant_conv else None

        self.gradient_checkpointing = False
        self.use_slicing = False
        self.use_tiling = False
        side = max(sample_size) if isinstance(sample_size, (list, tuple)) else sample_size
        self.tile_sample_min_size = max(min(side, _MAX_DEFAULT_TILE) // self.spatial_factor, 1) * self.spatial_factor
        self.tile_overlap_factor = 0.25

    # ------------------------------------------------------------------------------------------ picture <-> latents

    def encode(self, x, return_dict=True):
        """Picture ``x [B, in_channels, 8H, 8W]`` -> ``.latent_dist`` over [B, C, H, W] (or a 1-tuple of it).

        Raises:
            InputError: wrong rank or channel count, or a side that is no multiple of ``spatial_factor``.
        """
        self._check_input(x, "encode", self.config.in_channels, multiple_of=self.spatial_factor)
        posterior = DiagonalGaussianDistribution(self._by_slices(self._encode, x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z, return_dict=True, generator=None):
        """Latents ``z [B, C, H, W]``, unscaled -> ``.sample [B, out_channels, 8H, 8W]`` (or a 1-tuple of it).

        ``generator`` changes nothing: this decoder draws no noise. Callers written for decoders that do may pass it.

        Raises:
            InputError: wrong rank or channel count.
        """
        self._check_input(z, "decode", self.config.latent_channels)
        sample = self._by_slices(self._decode, z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample, sample_posterior=False, return_dict=True, generator=None):
        """Encodes and decodes ``sample [B, in_channels, 8H, 8W]``; the latents are the posterior's mode, or a draw
        with ``generator`` if ``sample_posterior``."""
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict=return_dict)

    def scale_latents(self, z):
        """Latents as encoded -> latents as the diffusion model sees them: ``(z - shift) * scale``.

        ``shift`` is ``shift_factor`` (None is 0) and ``scale`` is ``scaling_factor``; with ``latents_mean`` and
        ``latents_std``, ``shift`` is the mean and ``scale`` is ``scaling_factor / std``, per channel.
        """
        shift, scale = self._shift_and_scale(z)
        return (z - shift) * scale

    def unscale_latents(self, z):
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

    # ----------------------------------------------------------------------------------------------- memory options

    @property
    def spatial_factor(self):
        """Pixels per latent position along a side: 8 for four blocks."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def tile_latent_min_size(self):
        """Side of a tile in latent positions."""
        return self.tile_sample_min_size // self.spatial_factor

    def enable_slicing(self):
        """Encode and decode one row of the batch at a time: the same result, the memory of one picture."""
        self.use_slicing = True

    def disable_slicing(self):
        """Whole batches again."""
        self.use_slicing = False

    def enable_tiling(self, tile_sample_min_size=None, tile_overlap_factor=None):
        """Encode and decode pictures larger than a tile in overlapping tiles that are blended linearly.

        Memory then depends on the tile and no longer on the picture. Normalisation and attention see one tile at a
        time, so the result differs slightly from an untiled one.

        Args:
            tile_sample_min_size (int or None): side of a tile in pixels, a multiple of ``spatial_factor``. None keeps
                the present one; it starts as the smaller of ``sample_size`` and 512. (diffusers starts at
                ``sample_size``, 1024 for SD3, and so tiles nothing up to 1024x1024.)
            tile_overlap_factor (float or None): part of a tile shared with its neighbour, in [0, 1). None keeps the
                present one; it starts as 0.25.

        Raises:
            InputError: a value outside these ranges.
        """
        tile = self.tile_sample_min_size if tile_sample_min_size is None else tile_sample_min_size
        overlap = self.tile_overlap_factor if tile_overlap_factor is None else tile_overlap_factor
        if tile < self.spatial_factor or tile % self.spatial_factor:
            raise InputError(
                f"tile_sample_min_size={tile} must be a positive multiple of {self.spatial_factor}, the pixels per "
                "latent position."
            )
        if not 0 <= overlap < 1 or int(tile // self.spatial_factor * (1 - overlap)) < 1:
            raise InputError(
                f"tile_overlap_factor={overlap} must be in [0, 1) and leave at least one latent position of a "
                f"{tile}-pixel tile to advance by."
            )
        self.tile_sample_min_size, self.tile_overlap_factor = tile, overlap
        self.use_tiling = True

    def disable_tiling(self):
        """Whole pictures again."""
        self.use_tiling = False

    def _set_gradient_checkpointing(self, value):
        self.gradient_checkpointing = self.encoder.gradient_checkpointing = self.decoder.gradient_checkpointing = value

    # ----------------------------------------------------------------------------------------------------- internals

    def _by_slices(self, function, x):
        if self.use_slicing and x.shape[0] > 1:
            return paddle.concat([function(row) for row in paddle.split(x, x.shape[0])])
        return function(x)

    def _encode(self, x):
        if self.use_tiling and max(x.shape[2:]) > self.tile_sample_min_size:
            return self._tiled(self._encode_tile, x, self.spatial_factor, 1)
        return self._encode_tile(x)

    def _decode(self, z):
        if self.use_tiling and max(z.shape[2:]) > self.tile_latent_min_size:
            return self._tiled(self._decode_tile, z, 1, self.spatial_factor)
        return self._decode_tile(z)

    def _encode_tile(self, x):
        moments = self._network("encoder", x)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def _decode_tile(self, z):
        return self._network("decoder", z if self.post_quant_conv is None else self.post_quant_conv(z))

    def _network(self, name, x):
        network = getattr(self, name)
        return self._graph(name, network, [[-1, x.shape[1], -1, -1]])(x) if self.is_compiled else network(x)

    def _tiled(self, function, x, unit_in, unit_out):
        """``function`` on overlapping tiles of ``x``, blended; ``unit_in`` and ``unit_out`` are the pixels that one
        latent position has in ``x`` and in the result (1 on the latent side)."""
        size = self.tile_latent_min_size
        # In whole latent positions, so that input and output stay aligned for every overlap factor.
        step = int(size * (1 - self.tile_overlap_factor))
        blend = (size - step) * unit_out
        rows, above = [], None
        for top in range(0, x.shape[2], step * unit_in):
            tiles = []
            for column, left in enumerate(range(0, x.shape[3], step * unit_in)):
                tile = function(x[:, :, top : top + size * unit_in, left : left + size * unit_in])
                if above is not None:
                    tile = _blend(above[column], tile, blend, axis=2)
                if tiles:
                    tile = _blend(tiles[-1], tile, blend, axis=3)
                tiles.append(tile)
            keep = step * unit_out  # the rest of a tile lives on in its blended neighbour
            rows.append(paddle.concat([tile[:, :, :keep, :keep] for tile in tiles], axis=3))
            above = tiles
        return paddle.concat(rows, axis=2)

    def _check_input(self, x, method, channels, multiple_of=1):
        shape = list(x.shape)
        if len(shape) != 4 or shape[1] != channels:
            raise InputError(
                f"AutoencoderKL.{method} takes [B, {channels}, height, width] ({channels} channels by its "
                f"configuration); got {shape}."
            )
        if shape[2] % multiple_of or shape[3] % multiple_of or 0 in shape:
            fitting = [max(side // multiple_of, 1) * multiple_of for side in shape[2:]]
            raise InputError(
                f"AutoencoderKL.{method} takes a non-empty batch whose height and width are positive multiples of "
                f"{multiple_of}; got {shape}. Resize or crop to {fitting[0]}x{fitting[1]}, for example."
            )


def _blend(before, after, extent, axis):
    """``after`` with its first ``extent`` rows (``axis`` 2) or columns (3) faded in from the end of ``before``."""
    extent = min(before.shape[axis], after.shape[axis], extent)
    if extent == 0:
        return after
    fade = (paddle.arange(extent, dtype="float32") / extent).astype(after.dtype)
    fade = fade.reshape([-1, 1] if axis == 2 else [1, -1])
    start, end = before.shape[axis] - extent, after.shape[axis]
    old = paddle.slice(before, [axis], [start], [start + extent])
    mixed = old * (1 - fade) + paddle.slice(after, [axis], [0], [extent]) * fade
    if extent == end:  # no empty tensors: Paddle 2.6 refuses some of them
        return mixed
    return paddle.concat([mixed, paddle.slice(after, [axis], [extent], [end])], axis)


def _check_config(config):
    blocks = len(config.block_out_channels)
    for name, only in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        types = config[name]
        if len(types) != blocks:
            raise ConfigError(f"{name} has {len(types)} entries and block_out_channels {blocks}; give one per block.")
        for value in types:
            if value != only:
                raise ConfigError(f"{name} holds {value!r}; AutoencoderKL has only {only!r}.")
    if config.act_fn != "silu":
        raise ConfigError(f"act_fn={config.act_fn!r}; AutoencoderKL has only 'silu'.")
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
