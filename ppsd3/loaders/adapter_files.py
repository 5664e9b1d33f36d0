"""Where an adapter's tensors come from: a file, a directory, the hub, or a dict."""

import os

import numpy as np
import paddle

from ..serialization.readers import refuse_pickle
from ..serialization.tensors import from_numpy
from ..utils.errors import CheckpointNotFoundError, InputError
from ..utils.hub import resolve_file


def find_file(path, weight_name, default_name, subfolder, hub_options):
    """The adapter's file: ``path`` itself, or in that directory or repository.

    Args:
        path (str), weight_name (str, optional), subfolder (str, optional): as in ``load_lora_weights``.
        default_name (str): what ``weight_name`` is if it is left out and a directory has not only one file.
        hub_options (dict): of ``resolve_file``.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointFormatError: it is a pickle.
    """
    path = os.path.expanduser(path)
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
