"""Densities of training times for rectified flow (paper, section 3.1). All return float32 arrays in [0, 1]."""

from __future__ import annotations

import math

import numpy as np

from ..utils.errors import InputError


def sample_timesteps(
    rng: np.random.Generator,
    batch: int,
    density: str = "logit_normal",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    mode_scale: float = 1.29,
) -> np.ndarray:
    """Draws ``batch`` times.

    Args:
        density: ``"uniform"``, ``"logit_normal"`` (SD3, m = 0, s = 1), ``"mode"`` (heavy tails, s = 1.29)
            or ``"cosmap"``.

    Raises:
        InputError: unknown density.
    """
    u = rng.random(batch)
    if density == "uniform":
        t = u
    elif density == "logit_normal":
        t = 1 / (1 + np.exp(-(logit_mean + logit_std * rng.standard_normal(batch))))
    elif density == "mode":
        t = 1 - u - mode_scale * (np.cos(math.pi / 2 * u) ** 2 - 1 + u)
    elif density == "cosmap":
        t = 1 - 1 / (np.tan(math.pi / 2 * u) + 1)
    else:
        raise InputError(f"density={density!r} is unknown: use 'uniform', 'logit_normal', 'mode' or 'cosmap'.")
    return t.astype(np.float32)
