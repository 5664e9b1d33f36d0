"""Safetensors files: one, or shards with their index."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import IO, Union

import numpy as np
import paddle

from ..utils.errors import InputError
from ..utils.files import atomic_write, replacing
from ..utils.sizes import parse_size
from ..utils.types import Shape
from ..utils.weight_names import index_file, parse_weight_name, shard_file, weights_file
from .readers import DTYPES, require_readable
from .source import TensorSource
from .tensors import FLOATING, NUMPY_DTYPES, dtype_name

_FORMAT_NAMES = {name: code for code, name in DTYPES.items()}
_PADDLE_NAMES = {**_FORMAT_NAMES, "bfloat16": "U16"}  # ppdiffusers reads no other bfloat16
_ALIGNMENT = 64  # of the data section, in bytes: mapped tensors are aligned for vector loads


class StoredTensor:
    """A tensor of ``source`` that is read when it is written, so that one tensor at a time is in memory.

    Args:
        name: in ``source``.
        dtype: name of the dtype of a floating-point tensor as it is written. Default: its own; 8-bit floats, which only
            mean something with their scales, become bfloat16, which holds them exactly.
    """

    shape: Shape
    dtype: str

    def __init__(self, source: TensorSource, name: str, dtype: str | None = None) -> None:
        info = source.info(name)
        require_readable(source.path, name, info)
        self._source, self._name = source, name
        self.shape = info.shape
        own = "bfloat16" if info.dtype.startswith("float8") else info.dtype
        self.dtype = own if dtype is None or own not in FLOATING else dtype

    def numpy(self) -> np.ndarray:
        """The values; bfloat16 is uint16."""
        array = self._source.load(self._name, self.dtype)
        if array.base is not None:  # mapped: its pages would stay until the end
            array = array.copy()
            self._source.forget(self._name)
        return array


Writable = Union[paddle.Tensor, StoredTensor]  # what the functions below write


def byte_size(tensor: Writable) -> int:
    """Bytes of ``tensor``'s data."""
    return int(np.prod(tensor.shape, dtype=np.int64)) * NUMPY_DTYPES[dtype_name(tensor.dtype)].itemsize


def tensor_bytes(tensor: Writable) -> memoryview:
    """``tensor``'s data as a buffer of bytes, copied to the CPU if it is elsewhere."""
    return np.ascontiguousarray(tensor.numpy()).view(np.uint8).data


def split_into_shards(tensors: Mapping[str, Writable], max_bytes: int) -> list[dict[str, Writable]]:
    """``tensors`` in order, in shards of at most ``max_bytes`` each; a larger tensor is a shard by itself."""
    shards: list[dict[str, Writable]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = byte_size(tensor)
        if shards[-1] and used + size > max_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    return shards


def write_tensors(file: IO[bytes], tensors: Mapping[str, Writable], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one safetensors file to the open binary ``file``, holding one tensor at a time in memory.

    Args:
        metadata: stored in the header, e.g. ``{"format": "pt"}``; with the format "pd" or "np", bfloat16 is written as
            ppdiffusers and PaddleNLP read it.
    """
    codes = _PADDLE_NAMES if (metadata or {}).get("format") in ("pd", "np") else _FORMAT_NAMES
    # Wide dtypes first, as the reference writer does, so that every tensor is aligned to its own item size.
    names = sorted(tensors, key=lambda name: (-NUMPY_DTYPES[dtype_name(tensors[name].dtype)].itemsize, name))
    header: dict[str, Mapping] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name in names:
        tensor, start = tensors[name], offset
        offset += byte_size(tensor)
        code = codes[dtype_name(tensor.dtype)]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, offset]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        file.write(tensor_bytes(tensors[name]))


def write_checkpoint(
    directory: str,
    stem: str,
    tensors: Mapping[str, Writable],
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
    texts: Mapping[str, str] | None = None,
    format: str = "pt",
) -> None:
    """Writes ``tensors`` as ``stem`` into ``directory``: one file, or shards with their index.

    They take their names all at once when all are written (:mod:`ppsd3.utils.files`). The shards and the index that an
    earlier save of the same variant left go then; other files stay.

    Args:
        variant: e.g. "fp16"; becomes part of the names.
        max_shard_size: most bytes of tensor data per file.
        texts: file name -> content of further files of the same save, e.g. ``config.json``.
        format: the layout that the files' metadata names: "pt" for torch's, "pd" or "np" for Paddle's.

    Raises:
        InputError: ``directory`` is a file, or ``max_shard_size`` is no size.
        DiskError: the disk has too little space.
    """
    if os.path.isfile(directory):
        raise InputError(f"{directory} is a file; a model is saved into a directory.")
    shards = split_into_shards(tensors, parse_size(max_shard_size, "max_shard_size"))
    if len(shards) == 1:
        names = [weights_file(stem, variant)]
    else:
        names = [shard_file(stem, number, len(shards), variant) for number in range(1, len(shards) + 1)]
    total = sum(byte_size(tensor) for tensor in tensors.values())
    texts = dict(texts or {})
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(names, shards) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        texts[index_file(stem, variant)] = json.dumps(index, indent=2) + "\n"

    def is_former(path, new):
        weight = parse_weight_name(path)
        return weight is not None and (weight.stem, weight.variant) == (stem, variant)

    with replacing(directory, is_former, total) as new:
        for name, text in texts.items():
            with atomic_write(os.path.join(new, name)) as file:
                file.write(text.encode())
        for name, shard in zip(names, shards):
            with atomic_write(os.path.join(new, name)) as file:
                write_tensors(file, shard, {"format": format})
