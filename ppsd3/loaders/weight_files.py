"""Small weights that users pass by path, hub id, link or dict: where the file is, and what may stand for a tensor."""

import os

import numpy as np
import paddle

from ..serialization.readers import refuse_pickle
from ..serialization.tensors import from_numpy
from ..utils.errors import CheckpointNotFoundError, InputError
from ..utils.hub import resolve_file


def find_weights(path, default_name, weight_name=None, subfolder=None, hub_options=None):
    """The local path of a safetensors file: ``path`` itself, or in that directory or repository.

    Args:
        path (str or path): a file, a directory, a hub id, or a link to a file on the hub.
        default_name (str): of the file in a directory or repository.
        weight_name (str, optional): another name. Without it, a directory's only safetensors file is taken too.
        subfolder (str, optional): where it is.
        hub_options (dict, optional): see :func:`ppsd3.utils.hub.resolve_file`.

    Raises:
        CheckpointNotFoundError: there is none.
        CheckpointFormatError: it is a pickle.
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


def to_paddle(name, value):
    """A Paddle tensor of a Paddle tensor, a numpy array, a number, or torch's tensor."""
    if isinstance(value, paddle.Tensor):
        return value
    if hasattr(value, "detach"):  # torch's
        value = value.detach().float().cpu().numpy()
    if isinstance(value, (int, float, np.ndarray, np.generic)):
        return from_numpy(np.array(value))
    raise InputError(f"{name} is a {type(value).__name__}; it has to be a tensor or an array.")
