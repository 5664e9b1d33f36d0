"""A checkpoint whose tensors are another's, renamed, split or concatenated along rows, or transposed.

All differences between the layouts of published Stable Diffusion 3 files are of these kinds, so one class reads, loads
and converts all of them, a tensor at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import paddle

from ..utils.errors import CheckpointFormatError
from ..utils.types import Dtype
from .source import TensorInfo, TensorSource
from .tensors import NUMPY_DTYPES, convert, dtype_name, from_numpy, on_current_device


class Piece(NamedTuple):
    """The ``index``-th of ``count`` equal parts of tensor ``name`` along its first axis; all of it by default."""

    name: str
    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class Recipe:
    """``pieces`` one after the other along the first axis, then brought into ``form``: "same", "transposed" (a matrix),
    "linear" (a 1x1 convolution [O, I, 1, 1] as a matrix [O, I]) or "convolution" (back)."""

    pieces: tuple[Piece, ...]
    form: str = "same"


class RearrangedCheckpoint:
    """Tensors of ``source`` under other names; a :class:`TensorSource` of its own.

    Args:
        recipes: name -> :class:`Recipe`, or a numpy array that stands for itself.
        scales: name in ``source`` -> number that its values are multiplied by (scaled 8-bit floats).
        metadata: default empty, since the source's (its layout) may no longer hold.

    Raises:
        CheckpointFormatError: a tensor cannot be cut into as many equal parts as a recipe asks for.
    """

    path: str
    metadata: dict[str, str]

    def __init__(
        self,
        source: TensorSource,
        recipes: Mapping[str, Recipe | np.ndarray],
        scales: Mapping[str, float] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.path, self.metadata = source.path, metadata or {}
        self._source, self._recipes, self._scales = source, recipes, scales or {}
        order = {name: position for position, name in enumerate(source.keys())}
        self._names = sorted(recipes, key=lambda name: _position(recipes[name], order))
        for recipe in recipes.values():
            self._check(recipe)

    def _check(self, recipe: Recipe | np.ndarray) -> None:
        for piece in () if isinstance(recipe, np.ndarray) else recipe.pieces:
            shape = self._source.info(piece.name).shape
            if piece.count > 1 and (not shape or shape[0] % piece.count):
                raise CheckpointFormatError(
                    f"{self.path}: {piece.name} has the shape {list(shape)}, whose rows are not {piece.count} equal "
                    "parts; it is not the tensor of a Stable Diffusion 3 that has this name."
                )

    def keys(self) -> list[str]:
        """Names of all tensors, in the order of the source's bytes."""
        return list(self._names)

    def info(self, name: str) -> TensorInfo:
        """TensorInfo of ``name``, without byte offsets; the dtype is that of its first piece."""
        recipe = self._recipes[name]
        if isinstance(recipe, np.ndarray):
            return TensorInfo(recipe.dtype.name, recipe.shape)
        infos = [self._source.info(piece.name) for piece in recipe.pieces]
        rows = [info.shape[0] // piece.count for info, piece in zip(infos, recipe.pieces) if info.shape]
        shape = (sum(rows), *infos[0].shape[1:]) if rows else ()
        return TensorInfo(infos[0].dtype, _formed_shape(shape, recipe.form))

    def load(
        self, name: str, dtype: Dtype | None = None, part: tuple[int, int] = (0, 1), scale: float = 1.0
    ) -> np.ndarray:
        """``name`` as a numpy array, see :meth:`TensorSource.load`."""
        recipe = self._recipes[name]
        if isinstance(recipe, np.ndarray):
            target = recipe.dtype.name if dtype is None else dtype_name(dtype)
            array = np.empty(recipe.shape, NUMPY_DTYPES[target])
            convert(recipe * np.float32(scale), recipe.dtype.name, target, array)
        else:
            array = self._assemble(recipe, dtype, scale)
        index, count = part
        return array if count == 1 else np.split(array, count)[index]

    def _assemble(self, recipe: Recipe, dtype: Dtype | None, scale: float) -> np.ndarray:
        arrays = [
            self._source.load(piece.name, dtype, piece[1:], scale * self._scales.get(piece.name, 1.0))
            for piece in recipe.pieces
        ]
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        if recipe.form == "transposed":
            array = np.ascontiguousarray(array.T)
        else:
            array = array.reshape(_formed_shape(array.shape, recipe.form))
        if len(arrays) > 1 or recipe.form == "transposed":  # copied, so that the pages are no longer needed
            self._forget_pieces(recipe)
        return array

    def read(self, name: str, dtype: Dtype | None = None) -> paddle.Tensor:
        """``name`` as a tensor on the current device, see :meth:`TensorSource.read`."""
        return on_current_device(from_numpy(self.load(name, dtype)))

    def forget(self, name: str) -> None:
        """See :meth:`TensorSource.forget`."""
        recipe = self._recipes[name]
        if not isinstance(recipe, np.ndarray):
            self._forget_pieces(recipe)

    def _forget_pieces(self, recipe: Recipe) -> None:
        for piece in recipe.pieces:
            self._source.forget(piece.name)


def _position(recipe, order):
    return -1 if isinstance(recipe, np.ndarray) else order[recipe.pieces[0].name]


def _formed_shape(shape, form):
    if form == "transposed":
        return tuple(shape[::-1])
    if form == "linear":
        return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)
    return (*shape, 1, 1) if form == "convolution" and len(shape) == 2 else tuple(shape)
