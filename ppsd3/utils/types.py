"""Names for the types that annotations of several layers share."""

import os
from collections.abc import Sequence
from typing import Union

import paddle

PathLike = Union[str, os.PathLike[str]]
Dtype = Union[str, paddle.dtype]  # "float16", "paddle.float16" or paddle.float16
Shape = tuple[int, ...]
Tensors = dict[str, paddle.Tensor]  # by the name in the checkpoint
Names = Union[str, Sequence[str]]  # one or several
