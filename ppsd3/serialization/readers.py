"""Reads safetensors files, mapped into memory, one tensor at a time.

The safetensors library reads and checks the header; the tensors are read here, because the library has no Paddle reader
that works on Paddle 2.6, and because mapped memory can then become a parameter's own memory without a copy.
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle

from ..ops.sixteen_bit import read_floats
from ..utils.errors import CheckpointFormatError, CheckpointNotFoundError
from ..utils.json_files import parse_json
from ..utils.recognition import explain, explained
from ..utils.types import Dtype, PathLike
from .source import TensorInfo
from .tensors import NUMPY_DTYPES, PIECE, convert, dtype_name, from_numpy, on_current_device, pieces

# Name in the format -> name of the Paddle dtype. The two 8-bit floats are decoded: Paddle 2.6 has no dtype for them.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "U16": "bfloat16",  # as ppdiffusers and PaddleNLP write it, through numpy
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_MAX_REASON = 500  # characters; a hostile header's dtype may have millions
_MAX_AXES = 9  # of a Paddle tensor
_MAX_ELEMENTS = 1 << 60  # that numpy can count the bytes of; an empty tensor's other axes may be of any size
_ARRAY_DTYPES = {**NUMPY_DTYPES, "float8_e4m3fn": np.dtype(np.uint8), "float8_e5m2": np.dtype(np.uint8)}


def require_readable(path: str, name: str, info: TensorInfo) -> None:
    """Raises CheckpointFormatError if the tensor ``name`` of the file at ``path`` is one that Paddle cannot hold."""
    if info.dtype not in _ARRAY_DTYPES:
        raise CheckpointFormatError(
            f"{path}: tensor {name!r} has dtype {info.dtype}, which ppsd3 cannot read; it reads {', '.join(DTYPES)}. "
            "Convert the tensor to one of these."
        )
    if len(info.shape) > _MAX_AXES or math.prod(size or 1 for size in info.shape) >= _MAX_ELEMENTS:
        raise CheckpointFormatError(
            f"{path}: the shape of tensor {name!r} has {len(info.shape)} axes and is one that Paddle cannot hold. "
            "Reshape the tensor, or remove it from the file."
        )


def _again_if_replaced(init: Callable[..., None]) -> Callable[..., None]:
    """Opens the file again if another has taken its place before all was opened: header and data are of one file."""

    @functools.wraps(init)
    def opened(self: Any, path: PathLike) -> None:
        while True:
            before = _identity(path)
            try:
                init(self, path)
            except CheckpointFormatError:
                if _identity(path) == before:
                    raise
            else:
                if _identity(path) == before:
                    return

    return opened


def _identity(path):
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null character in the path
        return None
    return status.st_dev, status.st_ino


class SafetensorsFile:
    """A safetensors file, mapped into memory. Opening reads the header only.

    A tensor of a dtype that ppsd3 cannot read raises CheckpointFormatError when it is read, not before.

    Attributes:
        path: as it was given; metadata: the header's ``__metadata__``.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointFormatError: a pickle, a truncated file, or a header that contradicts the file.
    """

    path: str
    metadata: dict[str, str]

    @_again_if_replaced
    def __init__(self, path: PathLike) -> None:
        self.path = os.fsdecode(path)
        if not os.path.isfile(self.path):
            absent = f"{self.path} does not exist. Check the path, or download the file again."
            raise CheckpointNotFoundError(explain(self.path) or absent)
        with open(self.path, "rb") as file:
            self._size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            self.metadata, self._infos = self._read_header(8 + length)
            self._refuse_duplicates(file.read(length))
            # Copy-on-write: training may update mapped parameters in place, and the file must never change.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._descriptor = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._descriptor)

    def _corrupt(self, what: str) -> CheckpointFormatError:
        return CheckpointFormatError(
            f"{self.path} ({self._size} bytes) is no complete safetensors file: {what}. Download or write it again."
        )

    def _read_header(self, start: int) -> tuple[dict[str, str], dict[str, TensorInfo]]:
        """The metadata and the tensors; their bytes begin at byte ``start`` of the file, without gaps."""
        from safetensors import SafetensorError, safe_open

        infos = {}
        try:
            with safe_open(self.path, "np") as header:
                metadata = header.metadata() or {}
                for name in header.offset_keys():
                    entry = header.get_slice(name)
                    code, shape = str(entry.get_dtype()), tuple(entry.get_shape())
                    info = TensorInfo(DTYPES.get(code, code), shape, start)
                    start += info.nbytes
                    infos[name] = info._replace(stop=start)
        except SafetensorError as error:
            raise explained(self._corrupt(str(error)[:_MAX_REASON]), self.path, wanted="safetensors") from error
        if start != self._size:  # the library admits neither gaps nor further bytes
            raise self._corrupt(f"it changed while it was opened, or its tensors end at byte {start}")
        return metadata, infos

    def _refuse_duplicates(self, header: bytes) -> None:
        """Raises CheckpointFormatError if a name is there twice, of which the library takes the last.

        Each tensor has its ``"data_offsets"``, which can be written otherwise, or be other text, only with backslashes
        or where it changes the number; then the header is parsed once more.
        """
        if header.count(b'"data_offsets"') != len(self._infos) or b"\\" in header:
            parse_json(header, f"{self.path}: its header", CheckpointFormatError)

    def keys(self) -> list[str]:
        """Tensor names in the order of the file's bytes."""
        return sorted(self._infos, key=lambda name: (self._infos[name].start, name))

    def info(self, name: str) -> TensorInfo:
        """TensorInfo of ``name``."""
        return self._infos[name]

    def array(self, name: str) -> np.ndarray:
        """The raw bytes of ``name`` as a writable (copy-on-write) numpy array over the mapping.

        bfloat16 comes as uint16 and the 8-bit floats as uint8.
        """
        return self._mapped(name, self._infos[name])

    def _mapped(self, name: str, info: TensorInfo) -> np.ndarray:
        require_readable(self.path, name, info)
        array = np.empty(0, np.uint8)
        if info.stop > info.start:
            array = np.frombuffer(self._map, np.uint8, count=info.stop - info.start, offset=info.start)
        return array.view(_ARRAY_DTYPES[info.dtype]).reshape(info.shape)

    def load(
        self, name: str, dtype: Dtype | None = None, part: tuple[int, int] = (0, 1), scale: float = 1.0
    ) -> np.ndarray:
        """See :meth:`TensorSource.load`."""
        info = _part(self._infos[name], *part)
        array = self._mapped(name, info)
        own = info.dtype if info.dtype in NUMPY_DTYPES else "float32"
        target = own if dtype is None else dtype_name(dtype)
        if target != info.dtype or scale != 1.0 or not array.flags.aligned:
            array = self._converted(array, info, target, scale)
        return array

    def read(self, name: str, dtype: Dtype | None = None) -> paddle.Tensor:
        """See :meth:`TensorSource.read`."""
        tensor = from_numpy(self.load(name, dtype))
        if paddle.get_device() == "cpu":
            return tensor
        tensor = on_current_device(tensor)
        self.forget(name)
        return tensor

    def _converted(self, array, info, target, scale):
        """A copy of ``array``, times ``scale``, in the dtype ``target``.

        Its bytes are read again, a piece at a time: through the mapping, page faults would cost more.
        """
        result = np.empty(info.shape, NUMPY_DTYPES[target])
        plain = target == "float32" and scale == 1.0
        if plain and read_floats(self._descriptor, info.start, info.dtype, result):
            return result
        out, buffer = result.reshape(-1), np.empty(min(array.size, PIECE), array.dtype)
        for piece in pieces(array.size):
            source = buffer[: piece.stop - piece.start]
            self._read_at(info.start + piece.start * array.itemsize, source)
            if scale == 1.0:
                convert(source, info.dtype, target, out[piece])
            else:
                scaled = np.empty(source.shape, np.float32)
                convert(source, info.dtype, "float32", scaled)
                scaled *= np.float32(scale)
                convert(scaled, "float32", target, out[piece])
        return result

    def _read_at(self, position, array):
        """Fills ``array`` with the file's bytes from ``position``."""
        wanted = memoryview(array).cast("B")
        if not hasattr(os, "preadv"):  # Windows
            wanted[:] = memoryview(self._map)[position : position + len(wanted)]
            return
        while wanted:  # one read gives 2 GB at most, or less if a signal comes
            count = os.preadv(self._descriptor, [wanted], position)
            if not count:
                raise self._corrupt("it was cut off after it had been opened")
            wanted, position = wanted[count:], position + count

    def forget(self, name: str) -> None:
        """See :meth:`TensorSource.forget`."""
        self._drop_pages(self._infos[name].start, self._infos[name].stop)

    def _drop_pages(self, start, stop):
        # Partial pages at both ends are shared with the neighbouring tensors.
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = stop // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, length)


def _part(info: TensorInfo, index: int, count: int) -> TensorInfo:
    """TensorInfo of the ``index``-th of ``count`` equal parts along the first axis."""
    if count == 1:
        return info
    size = (info.stop - info.start) // count
    start = info.start + index * size
    return TensorInfo(info.dtype, (info.shape[0] // count, *info.shape[1:]), start, start + size)
