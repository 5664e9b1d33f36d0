"""Tensors in memory as a source to load or convert from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle

from ..utils.types import Dtype
from .source import TensorInfo
from .tensors import NUMPY_DTYPES, cast, convert, dtype_name


class TensorDict:
    """Named Paddle tensors as a :class:`~ppsd3.serialization.source.TensorSource`.

    Args:
        tensors: on any device.
        path: what errors call them.
        metadata: default empty.
    """

    path: str
    metadata: dict[str, str]

    def __init__(
        self, tensors: Mapping[str, paddle.Tensor], path: str = "The dict", metadata: dict[str, str] | None = None
    ) -> None:
        self.path, self.metadata, self._tensors = path, metadata or {}, tensors

    def keys(self) -> list[str]:
        """Names of all tensors."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """TensorInfo of ``name``, without byte offsets."""
        tensor = self._tensors[name]
        return TensorInfo(dtype_name(tensor.dtype), tuple(tensor.shape))

    def load(
        self, name: str, dtype: Dtype | None = None, part: tuple[int, int] = (0, 1), scale: float = 1.0
    ) -> np.ndarray:
        """A copy of ``name`` as a numpy array, see :meth:`TensorSource.load`."""
        (index, count), tensor = part, self._tensors[name]
        own = dtype_name(tensor.dtype)
        array = np.split(tensor.numpy(), count)[index] if count > 1 else tensor.numpy()
        target = own if dtype is None else dtype_name(dtype)
        if scale != 1.0:
            factors = np.empty(array.shape, np.float32)
            convert(array, own, "float32", factors)
            array, own = factors * np.float32(scale), "float32"
        if target == own:
            return array
        result = np.empty(array.shape, NUMPY_DTYPES[target])
        convert(array, own, target, result)
        return result

    def read(self, name: str, dtype: Dtype | None = None) -> paddle.Tensor:
        """A copy of ``name`` where it is, cast to ``dtype``."""
        tensor = self._tensors[name].detach()
        copied = tensor if dtype is None else cast(tensor, dtype)
        return copied.clone() if copied is tensor else copied

    def forget(self, name: str) -> None:
        """Nothing to forget: the tensors belong to somebody else."""
