"""Where pictures, timesteps and pooled text enter the transformer (paper, section 4).

Counterparts of diffusers' ``PatchEmbed``, ``Timesteps``, ``TimestepEmbedding``, ``PixArtAlphaTextProjection`` and
``CombinedTimestepTextProjEmbeddings``, cut down to what SD3 uses. Parameter names are the checkpoint's.
"""

from __future__ import annotations

import math

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ..modeling_utils import is_to_be_filled
from ..ops import Linear
from ..ops.shapes import sizes_of
from ..ops.vision import patch_tokens
from ..utils.errors import ConfigError, InputError


def sincos_2d(embed_dim: int, height: int, width: int, base_size: int) -> np.ndarray:
    """Fixed 2-D sine-cosine positions, computed in float64 along each axis.

    Args:
        embed_dim: width D; a multiple of 4.
        height, width: grid in patches.
        base_size: grid size at which a step is 1; a larger grid gets steps of ``base_size / size``.

    Returns:
        numpy.ndarray [height * width, D], float32: the first half encodes the column, the second half the row.
    """
    grid = np.empty((height, width, embed_dim), np.float32)
    grid[..., : embed_dim // 2] = _sincos_1d(embed_dim // 2, width, base_size)
    grid[..., embed_dim // 2 :] = _sincos_1d(embed_dim // 2, height, base_size)[:, None]
    return grid.reshape([-1, embed_dim])


def _sincos_1d(embed_dim, size, base_size):
    """``size`` positions, [size, embed_dim] float64."""
    positions = np.arange(size, dtype=np.float32) / (size / base_size)
    frequencies = 1.0 / 10000 ** (np.arange(embed_dim // 2, dtype=np.float64) / (embed_dim / 2.0))
    angles = np.outer(positions, frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class PatchEmbed(nn.Layer):
    """Latents to image tokens: a strided convolution plus cropped positional embeddings.

    Args:
        height, width: native latent grid (``sample_size``).
        patch_size: latent cells a token covers along a side. SD3 uses 2.
        in_channels: latent channels C.
        embed_dim: transformer width D.
        pos_embed_max_size: side M of the stored position table; a smaller picture uses its centre,
            so that one model serves every aspect ratio. Without it the table is the native grid, and other
            sizes are computed (SD 2-style).
        pos_embed_type: ``"sincos"``, or None to add no positions.

    Raises:
        ConfigError: another ``pos_embed_type``.

    Shapes: ``[B, C, H, W] -> [B, (H/p)(W/p), D]``. Buffer ``pos_embed [1, M * M, D]``, part of the checkpoint
    when ``pos_embed_max_size`` is set.
    """

    def __init__(
        self,
        height: int,
        width: int,
        patch_size: int,
        in_channels: int,
        embed_dim: int,
        pos_embed_max_size: int | None = None,
        pos_embed_type: str | None = "sincos",
    ) -> None:
        super().__init__()
        if pos_embed_type not in (None, "sincos"):
            raise ConfigError(f"pos_embed_type is {pos_embed_type!r}; it can be 'sincos' or None.")
        self.patch_size, self.pos_embed_max_size = patch_size, pos_embed_max_size
        self.height, self.width = height // patch_size, width // patch_size
        self.base_size = self.height
        self.proj = nn.Conv2D(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.has_positions = pos_embed_type is not None
        if not self.has_positions:
            return
        rows, columns = (pos_embed_max_size,) * 2 if pos_embed_max_size else (self.height, self.width)
        if pos_embed_max_size and is_to_be_filled():  # SD3.5-medium's table takes 6 seconds and 0.9 GB
            table = paddle.empty([1, rows * columns, embed_dim], "float32")
        else:
            table = paddle.to_tensor(sincos_2d(embed_dim, rows, columns, self.base_size)[None])
        self.register_buffer("pos_embed", table, persistable=bool(pos_embed_max_size))

    def positions(self, height: int, width: int) -> paddle.Tensor:
        """Positions of a grid of ``height x width`` patches: [1, height * width, D].

        Raises:
            InputError: the grid is larger than the stored table.
        """
        side = self.pos_embed_max_size
        if not side:
            if (height, width) == (self.height, self.width):
                return self.pos_embed
            table = sincos_2d(self.pos_embed.shape[-1], height, width, self.base_size)
            return paddle.to_tensor(table[None]).astype(self.pos_embed.dtype)
        if isinstance(height, int) and isinstance(width, int) and (height > side or width > side):
            raise InputError(
                f"A latent of {height * self.patch_size} x {width * self.patch_size} needs {height} x {width} patches; "
                f"this model stores positions for {side} x {side} (pos_embed_max_size). Ask for a smaller picture."
            )
        top, left = (side - height) // 2, (side - width) // 2
        grid = self.pos_embed.reshape([1, side, side, -1])[:, top : top + height, left : left + width]
        return grid.reshape([1, height * width, self.pos_embed.shape[-1]])

    def forward(self, latent: paddle.Tensor) -> paddle.Tensor:
        given, taken = latent.shape[1], self.proj.weight.shape[1]
        if given != taken:
            raise InputError(f"The latents have {given} channels, the transformer takes {taken} (in_channels).")
        height, width = (size // self.patch_size for size in sizes_of(latent)[2:])
        tokens = patch_tokens(latent, self.proj)  # [B, N, D]
        if not self.has_positions:
            return tokens
        positions = self.positions(height, width).astype(tokens.dtype)
        # all tokens as one axis, since Paddle broadcasts to the last axis ten times faster
        return (tokens.flatten(1) + positions.flatten()).reshape([0, -1, positions.shape[-1]])


class Timesteps(nn.Layer):
    """Sinusoidal features of the timestep, in fp32: ``[B] -> [B, num_channels]``.

    Args:
        num_channels: width of the feature. SD3 uses 256.
        flip_sin_to_cos: cosines first. SD3: True.
        downscale_freq_shift: shift of the frequency scale. SD3: 0.
    """

    def __init__(self, num_channels: int, flip_sin_to_cos: bool = True, downscale_freq_shift: float = 0) -> None:
        super().__init__()
        self.num_channels, self.flip_sin_to_cos = num_channels, flip_sin_to_cos
        half = num_channels // 2
        exponent = (
            np.float32(-math.log(10000)) * np.arange(half, dtype="float32") / np.float32(half - downscale_freq_shift)
        )
        # Rounded from float64: times 1000, the last bit of a float32 exp is 6e-5 of an angle, and torch's exp is right
        # in nearly all of them. No buffer, because a cast of the model must not reach it.
        self._frequencies = np.exp(exponent.astype("float64")).astype("float32")

    def forward(self, timesteps: paddle.Tensor) -> paddle.Tensor:
        # the angle of a timestep near 1000 has no correct digit left in half precision
        angles = timesteps.astype("float32").unsqueeze(-1) * paddle.to_tensor(self._frequencies)
        parts = [paddle.sin(angles), paddle.cos(angles)]
        return paddle.concat(parts[::-1] if self.flip_sin_to_cos else parts, axis=-1)


class TimestepEmbedding(nn.Layer):
    """``linear_2(silu(linear_1(x)))``: ``[B, in_channels] -> [B, time_embed_dim]``."""

    def __init__(self, in_channels: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear_1 = Linear(in_channels, time_embed_dim)
        self.linear_2 = Linear(time_embed_dim, time_embed_dim)

    def forward(self, sample: paddle.Tensor) -> paddle.Tensor:
        return self.linear_2(F.silu(self.linear_1(sample)))


class PixArtAlphaTextProjection(TimestepEmbedding):
    """The same two-layer MLP on the pooled text: ``[B, in_features] -> [B, hidden_size]``."""


class CombinedTimestepTextProjEmbeddings(nn.Layer):
    """The conditioning vector y: embedded timestep plus embedded pooled text (paper, figure 2).

    Args:
        embedding_dim: transformer width D.
        pooled_projection_dim: width P of the pooled text.

    Shapes: ``timestep [B]`` (fp32, 0 to 1000), ``pooled_projection [B, P]`` -> ``[B, D]``.
    """

    def __init__(self, embedding_dim: int, pooled_projection_dim: int) -> None:
        super().__init__()
        self.time_proj = Timesteps(num_channels=256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(in_channels=256, time_embed_dim=embedding_dim)
        self.text_embedder = PixArtAlphaTextProjection(pooled_projection_dim, embedding_dim)

    def forward(self, timestep: paddle.Tensor, pooled_projection: paddle.Tensor) -> paddle.Tensor:
        features = self.time_proj(timestep).astype(pooled_projection.dtype)
        return self.timestep_embedder(features) + self.text_embedder(pooled_projection)

    def of_steps(self, timesteps: paddle.Tensor, pooled_projection: paddle.Tensor) -> paddle.Tensor:
        """Each of the ``timesteps [T]`` with all of ``pooled_projection [B, P]``: [T, B, D]."""
        steps, rows = timesteps.shape[0], pooled_projection.shape[0]
        temb = self(timesteps.repeat_interleave(rows), paddle.concat([pooled_projection] * steps))
        return temb.reshape([steps, rows, -1])
