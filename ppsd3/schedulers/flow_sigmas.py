"""Sigma schedules of rectified flow as pure numpy functions; sampling and training share them.

``sigma`` in [0, 1] is the share of noise in ``x_sigma = (1 - sigma) x_0 + sigma noise``, and
``timestep = sigma * num_train_timesteps``. A schedule is a 1-D array that falls from ``sigma_max`` to ``sigma_min``.

The functions keep the dtype they are given, because diffusers does: its default schedules are made in float64 and
rounded to float32 at the end, those from the user's own sigmas are float32 throughout, and equal bits need both.
"""

from __future__ import annotations

import math

import numpy as np


def training_sigmas(num_train_timesteps: int, shift: float = 1.0) -> np.ndarray:
    """The table that the model was trained with: ``sigma_k = k / T`` for k = T .. 1, shifted; float32 ``[T]``."""
    timesteps = np.linspace(1, num_train_timesteps, num_train_timesteps, dtype=np.float32)[::-1]
    return shift_sigmas(timesteps / num_train_timesteps, shift)


def shift_sigmas(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """Moves a schedule towards noise: ``s sigma / (1 + (s - 1) sigma)``.

    Larger pictures need more noise to lose the same share of their content, so their models use ``shift`` > 1
    (SD3 uses 3). Esser et al. 2024, "Scaling Rectified Flow Transformers", section 5.3.2.
    """
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def time_shift_exponential(mu: float, sigma: float, t: np.ndarray) -> np.ndarray:
    """``e^mu / (e^mu + (1/t - 1)^sigma)``; with ``sigma`` = 1 the same as ``shift_sigmas(t, e^mu)``."""
    return math.exp(mu) / (math.exp(mu) + (1 / t - 1) ** sigma)


def time_shift_linear(mu: float, sigma: float, t: np.ndarray) -> np.ndarray:
    """``mu / (mu + (1/t - 1)^sigma)``; with ``sigma`` = 1 the same as ``shift_sigmas(t, mu)``."""
    return mu / (mu + (1 / t - 1) ** sigma)


TIME_SHIFTS = {"exponential": time_shift_exponential, "linear": time_shift_linear}


def stretch_shift_to_terminal(sigmas: np.ndarray, terminal: float) -> np.ndarray:
    """Scales ``1 - sigma`` so that the last sigma becomes ``terminal`` while a first sigma of 1 stays (LTX-Video)."""
    distance = 1 - sigmas
    # The divisor takes the array's dtype by hand: numpy 1 would widen a lone float32 scalar, numpy 2 would not.
    scale = distance[-1] / distance.dtype.type(1 - terminal)
    return 1 - distance / scale


def karras_sigmas(sigma_min: float, sigma_max: float, num_steps: int, rho: float = 7.0) -> np.ndarray:
    """Even steps in ``sigma^(1/rho)``: Karras et al. 2022, "Elucidating the Design Space", equation 5. float64."""
    ramp = np.linspace(0, 1, num_steps)
    lowest, highest = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (highest + ramp * (lowest - highest)) ** rho


def exponential_sigmas(sigma_min: float, sigma_max: float, num_steps: int) -> np.ndarray:
    """Even steps in ``log sigma``. float64; both ends must be above 0."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), num_steps))


def beta_sigmas(
    sigma_min: float, sigma_max: float, num_steps: int, alpha: float = 0.6, beta: float = 0.6
) -> np.ndarray:
    """Quantiles of a Beta(alpha, beta) law, dense at both ends: Lee et al. 2024, "Beta Sampling is All You Need".

    float64. Needs scipy, which is no dependency of ppsd3.

    Raises:
        ImportError: scipy is not installed.
    """
    from scipy.stats import beta as beta_law

    quantiles = beta_law.ppf(1 - np.linspace(0, 1, num_steps), alpha, beta)
    return sigma_min + quantiles * (sigma_max - sigma_min)


def with_terminal(sigmas: np.ndarray, invert: bool = False) -> np.ndarray:
    """Appends the sigma at which sampling ends: 0, or 1 for an inverted schedule (``1 - sigma``, Mochi).

    Returns:
        float32 ``[n + 1]``.
    """
    sigmas = sigmas.astype(np.float32)
    return np.append(1 - sigmas, np.float32(1)) if invert else np.append(sigmas, np.float32(0))
