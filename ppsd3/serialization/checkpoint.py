"""The weights in a directory, in one file or in shards."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import paddle

from ..utils.checking import shown
from ..utils.errors import CheckpointFormatError, CheckpointNotFoundError
from ..utils.json_files import read_json
from ..utils.recognition import explain
from ..utils.types import Dtype, PathLike
from ..utils.weight_names import (
    PADDLE_STEMS,
    PDPARAMS,
    PICKLE_SUFFIXES,
    available_variants,
    describe_variants,
    index_file,
    weights_file,
)
from .pdparams import PdparamsFile
from .readers import SafetensorsFile
from .source import TensorInfo, TensorSource


class Checkpoint:
    """The tensors of one or several safetensors (or ``.pdparams``) files.

    Attributes:
        path: what errors call the checkpoint; metadata: of the first file.
    """

    path: str
    metadata: dict[str, str]

    def __init__(self, files: Sequence[TensorSource], path: str) -> None:
        self.path = path
        self._files = files
        self._owner = {name: file for file in files for name in file.keys()}
        self.metadata = files[0].metadata if files else {}

    @classmethod
    def open(cls, directory: str, stem: str, variant: str | None = None, pdparams: bool = False) -> Checkpoint:
        """Opens the weights called ``stem`` in ``directory`` (headers only).

        Args:
            pdparams: read ``model_state.pdparams`` where there is nothing else, see
                :mod:`ppsd3.serialization.pdparams`.

        Raises:
            CheckpointNotFoundError: no weights, not that variant (the message lists the ones there are), or a shard
                that the index names is missing.
            CheckpointFormatError: only pickles, a damaged file, or an index that contradicts its shards.
        """
        names: list[tuple[str, str]] = [(name, "safetensors") for name in (stem, *PADDLE_STEMS)]
        for name, suffix in [*names, PDPARAMS] if pdparams else names:
            kind = PdparamsFile if (name, suffix) == PDPARAMS else SafetensorsFile
            index = os.path.join(directory, index_file(name, variant, suffix))
            if os.path.isfile(index):
                return cls._open_shards(index, kind)
            single = os.path.join(directory, weights_file(name, variant, suffix))
            if os.path.isfile(single):
                return cls([kind(single)], single)
        raise _explain_absence(directory, stem, variant)

    @classmethod
    def open_file(cls, path: PathLike) -> Checkpoint:
        """Opens one safetensors file."""
        return cls([SafetensorsFile(path)], os.fspath(path))

    @classmethod
    def _open_shards(cls, index: str, kind: type[SafetensorsFile] | type[PdparamsFile]) -> Checkpoint:
        weight_map = read_json(index, purpose="the list of shards", error=CheckpointFormatError).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointFormatError(f"{index} has no 'weight_map'. Download it again.")
        for tensor, shard in weight_map.items():
            if not isinstance(shard, str):
                raise CheckpointFormatError(
                    f"{index} says that tensor {shown(tensor)} is in {shown(shard)}, which is no file. "
                    "Download it again."
                )
        directory, shards = os.path.dirname(index), sorted(set(weight_map.values()))
        outside = [shard for shard in shards if os.path.basename(shard) != shard]
        if outside:
            raise CheckpointFormatError(f"{index} names the shard {outside[0]!r}, which is not beside it.")
        missing = [shard for shard in shards if not os.path.isfile(os.path.join(directory, shard))]
        if missing:
            raise CheckpointNotFoundError(
                f"{index} needs {len(shards)} shards, and {len(missing)} of them are not beside it: "
                f"{', '.join(missing[:5])}. Download them again."
            )
        files = {shard: kind(os.path.join(directory, shard)) for shard in shards}
        names = {shard: set(file.keys()) for shard, file in files.items()}
        twice = _in_two(names)
        if twice is not None:
            tensor, *of = twice
            raise CheckpointFormatError(
                f"{index}: tensor {shown(tensor)} is in both {' and '.join(of)}, which are shards of different "
                "checkpoints. Download them together."
            )
        for tensor, shard in weight_map.items():
            if tensor not in names[shard]:
                raise CheckpointFormatError(
                    f"{index} says that tensor {tensor!r} is in {shard}, but it is not: the shards and the index are "
                    "of different checkpoints. Download them together."
                )
        return cls(list(files.values()), index)

    def keys(self) -> list[str]:
        """Names of all tensors, in the order in which the files hold them."""
        return list(self._owner)

    def info(self, name: str) -> TensorInfo:
        """TensorInfo (dtype name, shape, ...) of ``name``."""
        return self._owner[name].info(name)

    def load(
        self, name: str, dtype: Dtype | None = None, part: tuple[int, int] = (0, 1), scale: float = 1.0
    ) -> np.ndarray:
        """Array ``name``, see :meth:`TensorSource.load`."""
        return self._owner[name].load(name, dtype, part, scale)

    def read(self, name: str, dtype: Dtype | None = None) -> paddle.Tensor:
        """Tensor ``name``, see :meth:`TensorSource.read`."""
        return self._owner[name].read(name, dtype)

    def forget(self, name: str) -> None:
        """See :meth:`TensorSource.forget`."""
        self._owner[name].forget(name)


def _in_two(names):
    """(tensor, shard, shard) of a tensor that two of the shards have, or None; ``names`` are shard -> its tensors."""
    owner = {}
    for shard, tensors in names.items():
        for tensor in tensors:
            if owner.setdefault(tensor, shard) != shard:
                return tensor, owner[tensor], shard
    return None


def _explain_absence(directory, stem, variant):
    """The error for a directory without the wanted weights, which lists what is there."""
    wanted = weights_file(stem, variant)
    if not os.path.isdir(directory):
        absent = f"{directory} does not exist; {wanted} should be in it. Check the path."
        return CheckpointNotFoundError(explain(directory) or absent)
    lost = os.path.join(directory, wanted)
    if os.path.islink(lost):  # into nothing
        return CheckpointNotFoundError(explain(lost) or f"{lost} leads nowhere. Download it again.")
    files = sorted(os.listdir(directory))
    variants = [variant for name in (stem,) + PADDLE_STEMS for variant in available_variants(files, name)]
    if variants:
        asked = f"weights of the variant {variant!r}" if variant else "weights without a variant"
        return CheckpointNotFoundError(
            f"{directory} has no {asked} (no {wanted}, nor its shards). It has {describe_variants(variants)}: "
            "pass one of these."
        )
    others = [name for name in files if name.endswith(".safetensors")]
    there = f"its safetensors files are {', '.join(others[:5])}." if others else "it has no weights at all."
    remedy = "Pass the directory that holds the weights, or `subfolder=` if they are deeper."
    known = None if others else explain(directory, wanted="network")
    strange = any(name.endswith(PICKLE_SUFFIXES) for name in files)
    kind = CheckpointFormatError if known and strange else CheckpointNotFoundError
    return kind(known or f"{directory} has no {wanted}; {there} {remedy}")
