"""Where pictures, timesteps, pooled text and class labels enter a transformer (paper, section 4).

Counterparts of the classes of the same names in diffusers and ppdiffusers. Parameter names are the checkpoint's.
"""

from __future__ import annotations

import math

import numpy as np
import paddle
from paddle import nn

from ..modeling_utils import is_to_be_filled
from ..ops import LayerNorm, Linear
from ..ops.shapes import sizes_of
from ..ops.vision import patch_tokens
from ..utils.checking import shown
from ..utils.errors import ConfigError, InputError
from ..utils.paddle_internals import without_memory
from .activations import get_activation

_MOST_POSITIONS = 1 << 28  # values of a table; SD3.5-medium's has 226,492,416


def get_2d_sincos_pos_embed(
    embed_dim: int,
    grid_size: int | tuple[int, int],
    cls_token: bool = False,
    extra_tokens: int = 0,
    interpolation_scale: float = 1.0,
    base_size: int = 16,
) -> np.ndarray:
    """Fixed 2-D sine-cosine positions, computed in float64 along each axis.

    Args:
        embed_dim: width D; a multiple of 4.
        grid_size: (height, width) of the grid in patches, or the side of a square one.
        cls_token, extra_tokens: with both, so many rows of zeros come first.
        interpolation_scale: divides the positions.
        base_size: grid size at which a step is 1; a larger grid gets steps of ``base_size / size``.

    Returns:
        numpy.ndarray [height * width, D], float32: the first half encodes the column, the second half the row.

    Raises:
        ConfigError: ``embed_dim`` is not a multiple of 4.
    """
    if embed_dim % 4:
        raise ConfigError(f"embed_dim is {embed_dim}; sines and cosines of two axes need a multiple of 4.")
    height, width = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
    grid = np.empty((height, width, embed_dim), np.float32)
    grid[..., : embed_dim // 2] = _sincos_1d(embed_dim // 2, width, base_size, interpolation_scale)
    grid[..., embed_dim // 2 :] = _sincos_1d(embed_dim // 2, height, base_size, interpolation_scale)[:, None]
    rows = grid.reshape([-1, embed_dim])
    return np.pad(rows, ((extra_tokens, 0), (0, 0))) if cls_token else rows


def _sincos_1d(embed_dim, size, base_size, interpolation_scale):
    """``size`` positions, [size, embed_dim] float64."""
    positions = np.arange(size, dtype=np.float32) / (size / base_size) / interpolation_scale
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
        layer_norm: normalise the tokens before positions are added.
        flatten: return tokens [B, N, D]; if False a grid of them, in ``data_format``.
        bias: of the convolution.
        interpolation_scale: divides the positions; more than 1 serves pictures larger than the native grid.
        add_pos_embed: whether positions are added.
        data_format: of the latents, ``"NCHW"`` or ``"NHWC"``.
        pos_embed_max_size: side M of the stored position table; a smaller picture uses its centre,
            so that one model serves every aspect ratio. Without it the table is the native grid, and other
            sizes are computed (SD 2-style).
        pos_embed_type: ``"sincos"``, or None to add no positions (diffusers' name for ``add_pos_embed``).

    Raises:
        ConfigError: another ``pos_embed_type`` or ``data_format``.

    Shapes: ``[B, C, H, W] -> [B, (H/p)(W/p), D]``. Buffer ``pos_embed [1, M * M, D]``, part of the checkpoint
    when ``pos_embed_max_size`` is set.
    """

    def __init__(
        self,
        height: int = 224,
        width: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dim: int = 768,
        layer_norm: bool = False,
        flatten: bool = True,
        bias: bool = True,
        interpolation_scale: float = 1,
        add_pos_embed: bool = True,
        data_format: str = "NCHW",
        pos_embed_max_size: int | None = None,
        pos_embed_type: str | None = "sincos",
    ) -> None:
        super().__init__()
        if pos_embed_type not in (None, "sincos"):
            raise ConfigError(f"pos_embed_type is {shown(pos_embed_type)}; it can be 'sincos' or None.")
        if data_format not in ("NCHW", "NHWC"):
            raise ConfigError(f"data_format is {data_format!r}; it can be 'NCHW' or 'NHWC'.")
        self.patch_size, self.in_channels, self.pos_embed_max_size = patch_size, in_channels, pos_embed_max_size
        self.height, self.width = height // patch_size, width // patch_size
        self.base_size, self.interpolation_scale = self.height, interpolation_scale
        self.layer_norm, self.flatten, self.data_format = layer_norm, flatten, data_format
        self.proj = nn.Conv2D(
            in_channels,
            embed_dim,
            kernel_size=patch_size,
            stride=patch_size,
            bias_attr=None if bias else False,
            data_format=data_format,
        )
        self.norm = LayerNorm(embed_dim) if layer_norm else None
        self.add_pos_embed = add_pos_embed and pos_embed_type is not None
        if not self.add_pos_embed:
            return
        grid = (pos_embed_max_size,) * 2 if pos_embed_max_size else (self.height, self.width)
        if pos_embed_max_size and is_to_be_filled():  # SD3.5-medium's table takes 6 seconds and 0.9 GB
            table = without_memory([1, grid[0] * grid[1], embed_dim])
        else:
            table = self._table(embed_dim, grid)
        self.register_buffer("pos_embed", table, persistable=bool(pos_embed_max_size))

    def _table(self, embed_dim, grid):
        values = grid[0] * grid[1] * embed_dim
        if values > _MOST_POSITIONS:
            raise ConfigError(
                f"A table of positions of {grid[0]} x {grid[1]} patches in {embed_dim} channels has {values:,} values; "
                f"it can have {_MOST_POSITIONS:,}. Make pos_embed_max_size or sample_size smaller."
            )
        sizes = {"base_size": self.base_size, "interpolation_scale": self.interpolation_scale}
        return paddle.to_tensor(get_2d_sincos_pos_embed(embed_dim, grid, **sizes)[None])

    def cropped_pos_embed(self, height: int, width: int) -> paddle.Tensor:
        """The centre of the stored table for latents of ``height x width``: [1, (height/p)(width/p), D].

        Raises:
            InputError: they are larger than the table, or there is none.
        """
        if not (self.add_pos_embed and self.pos_embed_max_size):
            raise InputError(
                "This PatchEmbed has no table to crop. Build it with pos_embed_max_size, the table's side in patches."
            )
        return self.positions(height // self.patch_size, width // self.patch_size)

    def positions(self, height: int, width: int) -> paddle.Tensor:
        """Positions of a grid of ``height x width`` patches: [1, height * width, D].

        Raises:
            InputError: the grid is larger than the stored table.
        """
        side = self.pos_embed_max_size
        if not side or any(isinstance(size, int) and size > side for size in (height, width)):
            return self._computed_positions(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        grid = self.pos_embed.reshape([1, side, side, -1])[:, top : top + height, left : left + width]
        return grid.reshape([1, height * width, self.pos_embed.shape[-1]])

    def _computed_positions(self, height, width):
        """:meth:`positions` of a grid of which no table has the centre."""
        side = self.pos_embed_max_size
        if side:
            raise InputError(
                f"A latent of {height * self.patch_size} x {width * self.patch_size} needs {height} x {width} patches; "
                f"this model stores positions for {side} x {side} (pos_embed_max_size). Ask for a smaller picture."
            )
        if (height, width) == (self.height, self.width):
            return self.pos_embed
        return self._table(self.pos_embed.shape[-1], (height, width)).astype(self.pos_embed.dtype)

    def forward(self, latent: paddle.Tensor) -> paddle.Tensor:
        sizes = sizes_of(latent)[1:]
        channels, height, width = sizes if self.data_format == "NCHW" else (sizes[2], *sizes[:2])
        if channels != self.in_channels:
            raise self._wrong_channels(channels)
        tokens = self._projected(latent)  # [B, N, D]
        if self.add_pos_embed:
            positions = self.positions(height // self.patch_size, width // self.patch_size).astype(tokens.dtype)
            # all tokens as one axis, since Paddle broadcasts to the last axis ten times faster
            tokens = (tokens.flatten(1) + positions.flatten()).reshape([0, -1, positions.shape[-1]])
        return tokens if self.flatten else self._grid(tokens, height, width)

    def _wrong_channels(self, channels):
        return InputError(
            f"The latents have {channels} channels, the transformer takes {self.in_channels} (in_channels)."
        )

    def _projected(self, latent):
        tokens = patch_tokens(latent, self.proj) if self.data_format == "NCHW" else self.proj(latent).flatten(1, 2)
        return tokens if self.norm is None else self.norm(tokens)

    def _grid(self, tokens, height, width):
        grid = tokens.reshape([0, height // self.patch_size, width // self.patch_size, tokens.shape[-1]])
        return grid.transpose([0, 3, 1, 2]) if self.data_format == "NCHW" else grid


class Timesteps(nn.Layer):
    """Sinusoidal features of the timestep, in fp32: ``[B] -> [B, num_channels]``.

    Args:
        num_channels: width of the feature, even. SD3 uses 256.
        flip_sin_to_cos: cosines first. SD3: True.
        downscale_freq_shift: shift of the frequency scale. SD3: 0.

    Raises:
        ConfigError: ``num_channels`` is odd.
    """

    def __init__(self, num_channels: int, flip_sin_to_cos: bool = True, downscale_freq_shift: float = 0) -> None:
        super().__init__()
        if num_channels % 2:
            raise ConfigError(f"num_channels is {num_channels}; there are as many sines as cosines. Make it even.")
        self.num_channels, self.flip_sin_to_cos = num_channels, flip_sin_to_cos
        self.downscale_freq_shift = downscale_freq_shift
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
    """``linear_2(act(linear_1(x)))``: ``[B, in_channels] -> [B, out_dim]``.

    Args:
        in_channels: width of the features of the timestep.
        time_embed_dim: width inside.
        act_fn: activation between the layers; see ``activations.get_activation``.
        out_dim: width outside; default ``time_embed_dim``.
        post_act_fn: activation of the result; default none.
        cond_proj_dim: width of a ``condition [B, cond_proj_dim]`` that is projected and added to the input.
    """

    def __init__(
        self,
        in_channels: int,
        time_embed_dim: int,
        act_fn: str = "silu",
        out_dim: int | None = None,
        post_act_fn: str | None = None,
        cond_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.linear_1 = Linear(in_channels, time_embed_dim)
        self.cond_proj = None if cond_proj_dim is None else Linear(cond_proj_dim, in_channels, bias=False)
        self.act = get_activation(act_fn)
        self.linear_2 = Linear(time_embed_dim, time_embed_dim if out_dim is None else out_dim)
        self.post_act = None if post_act_fn is None else get_activation(post_act_fn)

    def forward(self, sample: paddle.Tensor, condition: paddle.Tensor | None = None) -> paddle.Tensor:
        sample = sample if condition is None else self._conditioned(sample, condition)
        sample = self.linear_2(self.act(self.linear_1(sample)))
        return sample if self.post_act is None else self.post_act(sample)

    def _conditioned(self, sample, condition):
        if self.cond_proj is None:
            raise InputError("This TimestepEmbedding takes no condition. Build it with cond_proj_dim.")
        return sample + self.cond_proj(condition.astype(sample.dtype))


class PixArtAlphaTextProjection(nn.Layer):
    """A two-layer MLP on the pooled text: ``[B, in_features] -> [B, out_features]``.

    Args:
        in_features: width of the pooled text.
        hidden_size: width inside.
        out_features: width outside; default ``hidden_size``.
        act_fn: activation between the layers; see ``activations.get_activation``. SD3 has ``"silu"``.
    """

    def __init__(
        self, in_features: int, hidden_size: int, out_features: int | None = None, act_fn: str = "gelu_tanh"
    ) -> None:
        super().__init__()
        self.linear_1 = Linear(in_features, hidden_size)
        self.act_1 = get_activation(act_fn)
        self.linear_2 = Linear(hidden_size, hidden_size if out_features is None else out_features)

    def forward(self, caption: paddle.Tensor) -> paddle.Tensor:
        return self.linear_2(self.act_1(self.linear_1(caption)))


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
        self.text_embedder = PixArtAlphaTextProjection(pooled_projection_dim, embedding_dim, act_fn="silu")

    def forward(self, timestep: paddle.Tensor, pooled_projection: paddle.Tensor) -> paddle.Tensor:
        features = self.time_proj(timestep).astype(pooled_projection.dtype)
        return self.timestep_embedder(features) + self.text_embedder(pooled_projection)

    def of_steps(self, timesteps: paddle.Tensor, pooled_projection: paddle.Tensor) -> paddle.Tensor:
        """Each of the ``timesteps [T]`` with all of ``pooled_projection [B, P]``: [T, B, D]."""
        steps, rows = timesteps.shape[0], pooled_projection.shape[0]
        temb = self(
            timesteps.reshape([-1, 1]).expand([steps, rows]).flatten(), paddle.concat([pooled_projection] * steps)
        )
        return temb.reshape([steps, rows, -1])


class LabelEmbedding(nn.Layer):
    """Class labels to vectors: ``labels [B]`` (int64) -> ``[B, hidden_size]``.

    Args:
        num_classes: number of labels.
        hidden_size: width of the vectors.
        dropout_prob: share of labels that training replaces by the vector of no class, for classifier-free guidance.
    """

    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + (dropout_prob > 0), hidden_size)
        self.num_classes, self.dropout_prob = num_classes, dropout_prob

    def token_drop(self, labels: paddle.Tensor, force_drop_ids: paddle.Tensor | None = None) -> paddle.Tensor:
        """``labels`` with some replaced by ``num_classes``: by chance, or where ``force_drop_ids [B]`` is 1."""
        dropped = paddle.rand(labels.shape) < self.dropout_prob if force_drop_ids is None else force_drop_ids == 1
        return paddle.where(dropped, paddle.full_like(labels, self.num_classes), labels)

    def forward(self, labels: paddle.Tensor, force_drop_ids: paddle.Tensor | None = None) -> paddle.Tensor:
        if force_drop_ids is not None and not self.dropout_prob:
            raise InputError("This LabelEmbedding has no vector of no class. Build it with a dropout_prob above 0.")
        if force_drop_ids is not None or (self.training and self.dropout_prob > 0):
            labels = self.token_drop(labels, force_drop_ids)
        return self.embedding_table(labels)


class CombinedTimestepLabelEmbeddings(nn.Layer):
    """Embedded timestep plus embedded class label: the conditioning vector of DiT.

    Args:
        num_classes: number of labels.
        embedding_dim: width D.
        class_dropout_prob: see :class:`LabelEmbedding`.

    Shapes: ``timestep [B]``, ``class_labels [B]`` (int64) -> ``[B, D]``; ``hidden_dtype`` is the dtype that the
    features of the timestep are cast to, by default that of the weights.
    """

    def __init__(self, num_classes: int, embedding_dim: int, class_dropout_prob: float = 0.1) -> None:
        super().__init__()
        self.time_proj = Timesteps(num_channels=256, flip_sin_to_cos=True, downscale_freq_shift=1)
        self.timestep_embedder = TimestepEmbedding(in_channels=256, time_embed_dim=embedding_dim)
        self.class_embedder = LabelEmbedding(num_classes, embedding_dim, class_dropout_prob)

    def forward(
        self, timestep: paddle.Tensor, class_labels: paddle.Tensor, hidden_dtype: paddle.dtype | str | None = None
    ) -> paddle.Tensor:
        features = self.time_proj(timestep).astype(hidden_dtype or self.timestep_embedder.linear_1.compute_dtype)
        return self.timestep_embedder(features) + self.class_embedder(class_labels)
