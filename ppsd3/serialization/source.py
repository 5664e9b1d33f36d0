"""What the loaders read: named tensors, wherever they come from."""

from __future__ import annotations

import math
import re
from typing import NamedTuple, Protocol

import numpy as np
import paddle

from ..utils.recognition import explain_tensors
from ..utils.types import Dtype, Shape


class TensorInfo(NamedTuple):
    """What a file's header says of a tensor.

    Attributes:
        dtype: its name, e.g. "float16"; the format's, e.g. "F4", of one that ppsd3 cannot read.
        start, stop: byte offsets in the file; 0 for a tensor that is made of others.
    """

    dtype: str
    shape: Shape
    start: int = 0
    stop: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the data; the first number in a dtype's name is its width in bits."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.shape) * (int(bits[0]) if bits else 8) // 8  # bool has none


def explain_source(source: TensorSource, wanted: str = "") -> str | None:
    """What ``source`` is if it is of another model, see :func:`ppsd3.utils.recognition.explain_tensors`."""
    return explain_tensors(source.path, {name: source.info(name) for name in source.keys()}, wanted)


class TensorSource(Protocol):
    """Named tensors that are read one at a time: a file, a directory of shards, or a rearrangement of either.

    Attributes:
        path: what errors call it.
        metadata: of the file, e.g. ``{"format": "pt"}``.
    """

    path: str
    metadata: dict[str, str]

    def keys(self) -> list[str]:
        """Names of all tensors, in the order of the bytes."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape of ``name``."""
        ...

    def load(
        self, name: str, dtype: Dtype | None = None, part: tuple[int, int] = (0, 1), scale: float = 1.0
    ) -> np.ndarray:
        """``name`` as a writable numpy array; bfloat16 is uint16, since numpy has no bfloat16.

        Args:
            dtype: what to convert to; default the file's own dtype (float32 for the 8-bit floats). If it is the file's
                own, nothing is copied: the array is the mapped memory.
            part: (index, count): only the index-th of ``count`` equal parts along the first axis.
            scale: what the values are multiplied by, in float32.
        """
        ...

    def read(self, name: str, dtype: Dtype | None = None) -> paddle.Tensor:
        """``name`` as a tensor on the current device; on the CPU, it has the memory that :meth:`load` gives."""
        ...

    def forget(self, name: str) -> None:
        """Gives the mapped pages of ``name`` back, so that they don't count in this process's memory.

        Only for tensors whose bytes have been copied elsewhere: an in-place change to the mapping is lost.
        """
        ...
