"""Writes checkpoints of random weights in diffusers' and transformers' format, which all sides read."""

from __future__ import annotations

import json
import math
import os
import zlib
from typing import Any

import numpy as np

_POOL = (1 << 22) + 15  # normal numbers, from which all tensors are cut: drawing two billion would take a minute


def write(directory: str, component: str, config: dict[str, Any], dtype: str = "float32") -> None:
    """Writes ``component`` of ``config`` with random weights, unless ``directory`` has it.

    Matrices are normal over the square root of their fan-in, larger than usual initial weights, with which tokens would
    pass nearly unchanged and a wrong block would not show.

    Args:
        dtype: of the file, "float32" or "float16".
    """
    if os.path.isdir(directory):
        return
    from ..serialization.tensors import from_numpy
    from ..serialization.writers import write_checkpoint
    from ..utils.paddle_internals import LazyGuard
    from .sides.ours import component_class

    with LazyGuard():  # names and shapes, without memory
        model = component_class(component)(**config)
    parameters = {name for name, _ in model.named_parameters()}
    pool = np.random.default_rng(0).standard_normal(_POOL, dtype=np.float32)
    tensors = {}
    for name, slot in model.state_dict().items():
        if name not in model._tied_keys:
            array = _draw(pool, name, list(slot.shape)) if name in parameters else slot.numpy()
            tensors[name] = from_numpy(array.astype(dtype))
    text = json.dumps(model.to_json_dict(), indent=2, sort_keys=True) + "\n"
    write_checkpoint(directory, model.weights_name, tensors, texts={model.config_name: text})


def _draw(pool: np.ndarray, name: str, shape: list[int]) -> np.ndarray:
    """float32 array of ``shape``; the same for the same name."""
    start = zlib.crc32(name.encode()) % (len(pool) // 2)
    values = np.resize(pool[start:], shape)
    if len(shape) == 1:  # biases, and norms' scales
        return 0.02 * values + np.float32("norm" in name and name.endswith("weight"))
    if "embedding" in name or name == "shared.weight":
        return values
    fan_in = math.prod(shape[1:])
    if name.endswith("SelfAttention.q.weight"):  # T5 does not divide its logits by the root of the head's width
        fan_in *= 64
    return values * np.float32(fan_in**-0.5)
