"""Encoding and decoding with bounded memory: a picture of the batch at a time, or tiles of a picture."""

from __future__ import annotations

import paddle

from ..utils.checking import shown
from ..utils.errors import InputError
from ..utils.keywords import SWITCHES, takes_keywords_of
from ..utils.threads import changes_networks

_MAX_DEFAULT_TILE = 512  # pixels; SD3's sample_size of 1024 as a tile would leave a 1024x1024 picture in one piece


class Tileable:
    """Mixed into autoencoders, which say how one tile is encoded and decoded."""

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along a side."""
        raise NotImplementedError

    def _encode_tile(self, x: paddle.Tensor) -> paddle.Tensor:
        """Picture -> latents, or their moments."""
        raise NotImplementedError

    def _decode_tile(self, z: paddle.Tensor) -> paddle.Tensor:
        """Latents -> picture."""
        raise NotImplementedError

    def _init_tiling(self, sample_size):
        """``sample_size`` (int or pair): picture side that the model was trained for; bounds the default tile."""
        self.use_slicing = False
        self.use_tiling = False
        side = max(sample_size) if isinstance(sample_size, (list, tuple)) else sample_size
        self.tile_sample_min_size = max(min(side, _MAX_DEFAULT_TILE) // self.spatial_factor, 1) * self.spatial_factor
        self.tile_overlap_factor = 0.25

    @property
    def tile_latent_min_size(self) -> int:
        """Side of a tile in latent positions."""
        return self.tile_sample_min_size // self.spatial_factor

    @changes_networks
    def enable_slicing(self) -> None:
        """Encode and decode one row of the batch at a time: the same result, the memory of one picture."""
        self.use_slicing = True

    @changes_networks
    def disable_slicing(self) -> None:
        """Whole batches again."""
        self.use_slicing = False

    @changes_networks
    @takes_keywords_of(SWITCHES)
    def enable_tiling(
        self,
        tile_sample_min_size: int | None = None,
        tile_overlap_factor: float | None = None,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
    ) -> None:
        """Encode and decode pictures larger than a tile in overlapping tiles that are blended linearly.

        Memory then depends on the tile and no longer on the picture. Normalisation and attention see one tile at a
        time, so the result differs slightly from an untiled one.

        Args:
            tile_sample_min_size: side of a tile in pixels, a multiple of ``spatial_factor``. None keeps
                the present one; it starts as the smaller of ``sample_size`` and 512. (diffusers starts at
                ``sample_size``, 1024 for SD3, and so tiles nothing up to 1024x1024.)
            tile_overlap_factor: part of a tile shared with its neighbour, in [0, 1). None keeps the
                present one; it starts as 0.25.
            tile_sample_min_height, tile_sample_min_width: diffusers' names for ``tile_sample_min_size``; tiles are
                square.

        Raises:
            InputError: a value outside these ranges, or sides that differ.
        """
        given = (tile_sample_min_size, tile_sample_min_height, tile_sample_min_width)
        sides = sorted({side for side in given if side is not None})
        if len(sides) > 1:
            raise InputError(f"A tile of the sides {sides} is asked for; tiles are square. Name one side.")
        tile_sample_min_size = next(iter(sides), None)
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

    @changes_networks
    def disable_tiling(self) -> None:
        """Whole pictures again."""
        self.use_tiling = False

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

    def _check_input(self, x, method, channels, return_dict, multiple_of=1):
        if not isinstance(return_dict, bool):
            raise InputError(f"`return_dict` is {shown(return_dict)}; it has to be True or False.")
        shape = list(x.shape) if hasattr(x, "stop_gradient") else []  # which tensors have, in a graph too
        open_or_fitting = all(side == -1 or side % multiple_of == 0 for side in shape[2:])  # -1: in a static graph
        whole = any(kind in str(getattr(x, "dtype", "")).lower() for kind in ("int", "bool", "complex"))
        if len(shape) != 4 or shape[1] != channels or 0 in shape or not open_or_fitting or whole:
            raise self._wrong_input(x, shape, method, channels, multiple_of)

    def _wrong_input(self, x, shape, method, channels, multiple_of):
        method = f"{type(self).__name__}.{method}"
        if not hasattr(x, "stop_gradient"):
            return InputError(f"{method} takes a paddle.Tensor; got {shown(x)}.")
        if len(shape) != 4 or shape[1] != channels:
            return InputError(
                f"{method} takes [B, {channels}, height, width] ({channels} channels by its configuration); got "
                f"{shape}."
            )
        if 0 not in shape and all(side == -1 or side % multiple_of == 0 for side in shape[2:]):
            return InputError(f"{method} takes floating-point numbers; got {shown(x)}. Call .astype('float32') on it.")
        fitting = [max(side // multiple_of, 1) * multiple_of for side in shape[2:]]
        return InputError(
            f"{method} takes a non-empty batch whose height and width are positive multiples of {multiple_of}; got "
            f"{shape}. Resize or crop to {fitting[0]}x{fitting[1]}, for example."
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
