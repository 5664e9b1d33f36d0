"""Finds the small weights (LoRA, textual inversion, IP-adapter) that users pass by path, hub id, link or dict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

from ..utils.errors import CheckpointFormatError, CheckpointNotFoundError, InputError
from ..utils.hub import resolve_file
from ..utils.recognition import explain, explain_name
from ..utils.types import PathLike
from .tensors import NUMPY_DTYPES, from_numpy


def find_weights(
    path: PathLike,
    default_name: str | tuple[str, ...],
    weight_name: str | None = None,
    subfolder: str | None = None,
    hub_options: Mapping[str, Any] | None = None,
) -> str:
    """The local path of a safetensors file: ``path`` itself, or in that directory or repository.

    Args:
        path: a file, a directory, a hub id, or a link to a file on the hub.
        default_name: of the file in a directory or repository; of several, the first that is there.
        weight_name: another name. Without it, a directory's only safetensors file is used too.
        subfolder: its folder there.
        hub_options: see :func:`ppsd3.utils.hub.resolve_file`.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointFormatError: a name of another format, e.g. of a pickle.
    """
    path, hub_options = os.path.expanduser(os.fspath(path)), hub_options or {}
    default_names = (default_name,) if isinstance(default_name, str) else default_name
    names = default_names if weight_name is None else (weight_name,)
    if os.path.isdir(path):
        directory = os.path.join(path, subfolder or "")
        everything = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
        files = [name for name in everything if name.endswith(".safetensors") or name == weight_name]
        found = [name for name in names if name in files] or (files if weight_name is None and len(files) == 1 else [])
        if not found:
            said = explain_name(os.path.join(directory, names[0])) or (None if files else explain(directory))
            if said is not None:
                raise CheckpointFormatError(said)
            there = ", ".join(files) or "no safetensors file"
            raise CheckpointNotFoundError(f"{directory} has no {names[0]}; it has {there}. Pass weight_name.")
        return os.path.join(directory, found[0])
    if os.path.isfile(path) or path.endswith(".safetensors"):
        return resolve_file(path, **hub_options)
    for name in (path, names[0]):
        said = explain_name(name)
        if said is not None:
            raise CheckpointFormatError(said)
    errors = []
    for name in names:
        try:
            return resolve_file("/".join(part for part in (path, subfolder, name) if part), **hub_options)
        except CheckpointNotFoundError as error:
            errors.append(error)
    raise errors[0]


def to_paddle(name: str, value: Any) -> paddle.Tensor:
    """A Paddle tensor, numpy array, number or torch tensor as a Paddle tensor; ``name`` is for the error."""
    if not isinstance(name, str):
        raise InputError(f"A dict of tensors has the key {name!r}; its keys are their names.")
    if isinstance(value, paddle.Tensor):
        return value
    if hasattr(value, "detach"):  # torch's
        value = value.detach().cpu()
        value = value.numpy() if value.is_complex() or not value.is_floating_point() else value.float().numpy()
    if not isinstance(value, (int, float, np.ndarray, np.generic)):
        raise InputError(f"{name!r} is a {type(value).__name__}; it has to be a tensor or an array.")
    array = np.array(value)
    if array.dtype not in NUMPY_DTYPES.values():
        raise InputError(f"{name} is an array of {array.dtype}; it has to be one of real numbers.")
    return from_numpy(array)
