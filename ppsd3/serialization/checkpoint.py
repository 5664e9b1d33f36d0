"""Which files of a directory hold a model's weights, and all of them as one source of named tensors.

Names are those that diffusers and transformers write, ``stem`` being ``diffusion_pytorch_model`` or ``model``:

    stem.safetensors                      stem.fp16.safetensors
    stem-00001-of-00002.safetensors       stem.fp16-00001-of-00002.safetensors
    stem.safetensors.index.json           stem.safetensors.index.fp16.json
"""

import os
import re

from ..configuration_utils import read_json
from ..utils.errors import CheckpointFormatError, CheckpointNotFoundError
from .readers import SafetensorsFile, refuse_pickle

# Stems that Paddle-layout checkpoints use (ppdiffusers, PaddleNLP); tried after the model's own.
PADDLE_STEMS = ("diffusion_paddle_model", "model_state")
_WEIGHT_FILE = re.compile(r"\.(safetensors|bin|pdparams|pt|pth|ckpt)$")


def weights_file(stem, variant=None):
    """Name of an unsharded weights file: ``weights_file("model", "fp16") == "model.fp16.safetensors"``."""
    return f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"


def index_file(stem, variant=None):
    """Name of a sharded checkpoint's index: ``index_file("model", "fp16") == "model.safetensors.index.fp16.json"``."""
    return f"{stem}.safetensors.index.{variant}.json" if variant else f"{stem}.safetensors.index.json"


def shard_file(stem, number, count, variant=None):
    """Name of shard ``number`` (from 1) of ``count``: ``model.fp16-00001-of-00002.safetensors``."""
    return f"{stem}.{variant}-{number:05d}-of-{count:05d}.safetensors" if variant else (
        f"{stem}-{number:05d}-of-{count:05d}.safetensors"
    )


def variants_present(directory, stem):
    """The variants of ``stem`` in ``directory``, sorted; ``None``, first, is the one without a name."""
    single = re.compile(re.escape(stem) + r"(?:\.([^.-]+))?\.safetensors$")
    index = re.compile(re.escape(stem) + r"\.safetensors\.index(?:\.([^.]+))?\.json$")
    matches = [single.match(name) or index.match(name) for name in os.listdir(directory)]
    return sorted({match.group(1) for match in matches if match}, key=lambda variant: variant or "")


class Checkpoint:
    """The tensors of one or several safetensors files under one set of names.

    Attributes:
        path (str): what errors call the checkpoint; metadata (dict): of the first file.
    """

    def __init__(self, files, path):
        self.path = path
        self._files = files
        self._owner = {name: file for file in files for name in file.keys()}
        self.metadata = files[0].metadata if files else {}

    @classmethod
    def open(cls, directory, stem, variant=None):
        """Opens the weights called ``stem`` in ``directory`` (headers only).

        Raises:
            CheckpointNotFoundError: no weights, not that variant (the message lists the ones there are), or a shard
                that the index names is missing.
            CheckpointFormatError: only pickles, a damaged file, or an index that contradicts its shards.
        """
        for name in (stem,) + PADDLE_STEMS:
            index = os.path.join(directory, index_file(name, variant))
            if os.path.isfile(index):
                return cls._open_shards(index)
            single = os.path.join(directory, weights_file(name, variant))
            if os.path.isfile(single):
                return cls.open_file(single)
        raise _explain_absence(directory, stem, variant)

    @classmethod
    def open_file(cls, path):
        """Opens one safetensors file."""
        return cls([SafetensorsFile(path)], os.fspath(path))

    @classmethod
    def _open_shards(cls, index):
        weight_map = read_json(index, purpose="the list of shards").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointFormatError(f"{index} has no 'weight_map'. Download it again.")
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
        files = {shard: SafetensorsFile(os.path.join(directory, shard)) for shard in shards}
        names = {shard: set(file.keys()) for shard, file in files.items()}
        for tensor, shard in weight_map.items():
            if tensor not in names[shard]:
                raise CheckpointFormatError(
                    f"{index} says that tensor {tensor!r} is in {shard}, but it is not: the shards and the index are "
                    "of different checkpoints. Download them together."
                )
        return cls(list(files.values()), index)

    def keys(self):
        """Names of all tensors, in the order in which the files hold them."""
        return list(self._owner)

    def info(self, name):
        """TensorInfo (dtype name, shape, ...) of ``name``."""
        return self._owner[name].info(name)

    def read(self, name, dtype=None):
        """Tensor ``name``, see :meth:`SafetensorsFile.read`."""
        return self._owner[name].read(name, dtype)

    def forget(self, name):
        """See :meth:`SafetensorsFile.forget`."""
        self._owner[name].forget(name)


def _explain_absence(directory, stem, variant):
    """The error for a directory without the wanted weights: says what is there instead."""
    wanted = weights_file(stem, variant)
    if not os.path.isdir(directory):
        return CheckpointNotFoundError(f"{directory} does not exist; {wanted} should be in it. Check the path.")
    present = [v for name in (stem,) + PADDLE_STEMS for v in variants_present(directory, name)]
    if present:
        listed = ", ".join("variant=None" if v is None else f"variant={v!r}" for v in present)
        asked = f"the variant {variant!r}" if variant else "weights without a variant"
        return CheckpointNotFoundError(
            f"{directory} has no {asked} of {stem} (neither {wanted} nor its shards). It has {listed}: pass one of these."
        )
    pickles = [name for name in sorted(os.listdir(directory)) if _WEIGHT_FILE.search(name)]
    for name in pickles:
        path = os.path.join(directory, name)
        if not name.endswith(".safetensors"):
            with open(path, "rb") as file:
                try:
                    refuse_pickle(path, file.read(8))
                except CheckpointFormatError as error:
                    return error
    return CheckpointNotFoundError(
        f"{directory} has no {wanted}"
        + (f"; it has {', '.join(pickles[:5])}." if pickles else " and no other weights.")
        + " Pass the directory that holds the weights, or `subfolder=` if they are deeper."
    )
