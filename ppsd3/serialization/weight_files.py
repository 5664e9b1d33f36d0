"""Finds the small weights (LoRA, textual inversion, IP-adapter) that users pass by path, hub id, link or dict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

from .readers import refuse_pickle
from .tensors import from_numpy
from ..utils.errors import CheckpointNotFoundError, InputError
from ..utils.hub import resolve_file
from ..utils.types import PathLike


def find_weights(
    path: PathLike,
    default_name: str,
    weight_name: str | None = None,
    subfolder: str | None = None,
    hub_options: Mapping[str, Any] | None = None,
) -> str:
    """The local path of a safetensors file: ``path`` itself, or in that directory or repository.

    Args:
        path: a file, a directory, a hub id, or a link to a file on the hub.
        default_name: of the file in a directory or repository.
        weight_name: another name. Without it, a directory's only safetensors file is used too.
        subfolder: its folder there.
        hub_options: see :func:`ppsd3.utils.hub.resolve_file`.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointFormatError: a pickle.
    """
    path, hub_options = os.path.expanduser(os.fspath(path)), hub_options or {}
    if not os.path.isdir(path):
        refuse_pickle(path)
    refuse_pickle(weight_name or default_name)
    if os.path.isdir(path):
        directory = os.path.join(path, subfolder or "")
        name = weight_name or default_name
        files = (
            sorted(f for f in os.listdir(directory) if f.endswith(".safetensors")) if os.path.isdir(directory) else []
        )
        if weight_name is None and name not in files and len(files) == 1:
            name = files[0]
        if name not in files:
            there = ", ".join(files) or "no safetensors file"
            raise CheckpointNotFoundError(f"{directory} has no {name}; it has {there}. Pass weight_name.")
        return os.path.join(directory, name)
    if os.path.isfile(path) or path.endswith(".safetensors"):
        return resolve_file(path, **hub_options)
    return resolve_file(
        "/".join(part for part in (path, subfolder, weight_name or default_name) if part), **hub_options
    )


def to_paddle(name: str, value: Any) -> paddle.Tensor:
    """A Paddle tensor, numpy array, number or torch tensor as a Paddle tensor; ``name`` is for the error."""
    if isinstance(value, paddle.Tensor):
        return value
    if hasattr(value, "detach"):  # torch's
        value = value.detach().float().cpu().numpy()
    if isinstance(value, (int, float, np.ndarray, np.generic)):
        return from_numpy(np.array(value))
    raise InputError(f"{name} is a {type(value).__name__}; it has to be a tensor or an array.")
