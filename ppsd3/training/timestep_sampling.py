"""Densities of training times for rectified flow (paper, section 3.1). All return float32 arrays in [0, 1]."""

import math

import numpy as np

from ..utils.errors import InputError


def sample_timesteps(rng, batch, density="logit_normal", logit_mean=0.0, logit_std=1.0, mode_scale=1.29):
    """Draws ``batch`` times.

    Args:
        rng (numpy.random.Generator): source of randomness.
        batch (int): how many.
        density (str): ``"uniform"``, ``"logit_normal"`` (SD3, m = 0, s = 1), ``"mode"`` (heavy tails, s = 1.29)
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
