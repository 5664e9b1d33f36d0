"""What a network learns on the way from data to noise: trajectories, predictions, targets and weights.

A :class:`Trajectory` is ``z_t = alpha(t) x0 + sigma(t) noise`` with data at t = 0 and noise at t = 1. A
:class:`Objective` adds what the network predicts. Paper, section 2: every pair of them is one loss
``L_w = -1/2 E[w_t lambda'_t |noise_theta - noise|^2]`` with its own weight ``w_t``, where ``lambda`` is the log-SNR.

Coefficients are float64 numpy arrays of the times' shape; latents are Paddle tensors.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import Any, Callable

import numpy as np
import paddle

from ..utils.checking import checks_arguments
from ..utils.errors import InputError
from .timestep_sampling import CosMap, FloatArray, Times, normal_cdf, normal_icdf

Coefficients = tuple[FloatArray, FloatArray]


class Trajectory(abc.ABC):
    """A Gaussian path ``z_t = alpha(t) x0 + sigma(t) noise``."""

    @abc.abstractmethod
    def alpha(self, t: Times) -> FloatArray:
        """Share of the data."""

    @abc.abstractmethod
    def sigma(self, t: Times) -> FloatArray:
        """Share of the noise."""

    @abc.abstractmethod
    def alpha_prime(self, t: Times) -> FloatArray:
        """Derivative of :meth:`alpha`."""

    @abc.abstractmethod
    def sigma_prime(self, t: Times) -> FloatArray:
        """Derivative of :meth:`sigma`."""

    @abc.abstractmethod
    def time(self, log_snr: Times) -> FloatArray:
        """Inverse of :meth:`log_snr`; beyond the trajectory's range, its nearest end."""

    def log_snr(self, t: Times) -> FloatArray:
        """``lambda(t) = log(alpha^2 / sigma^2)``, which falls."""
        return 2 * (np.log(self.alpha(t)) - np.log(self.sigma(t)))

    def log_snr_prime(self, t: Times) -> FloatArray:
        """Derivative of :meth:`log_snr`, negative."""
        return 2 * (self.alpha_prime(t) / self.alpha(t) - self.sigma_prime(t) / self.sigma(t))

    def input_scale(self, t: Times) -> FloatArray:
        """What the network's input is multiplied by."""
        return np.ones_like(np.asarray(t, np.float64))

    def timestep(self, t: Times) -> FloatArray:
        """What the network is told of the time: ``1000 t``."""
        return 1000 * np.asarray(t, np.float64)

    def interpolate(self, x0: paddle.Tensor, noise: paddle.Tensor, t: Times) -> paddle.Tensor:
        """``x0, noise [B, ...]``, ``t [B]`` -> noisy sample [B, ...]."""
        return combine(self.alpha(t), x0, self.sigma(t), noise)

    def velocity(self, x0: paddle.Tensor, noise: paddle.Tensor, t: Times) -> paddle.Tensor:
        """``dz/dt`` of the path between ``x0`` and ``noise`` [B, ...] at ``t [B]``."""
        return combine(self.alpha_prime(t), x0, self.sigma_prime(t), noise)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Trajectory):
    """The straight path ``z_t = (1 - t) x0 + t noise`` (SD3)."""

    def alpha(self, t: Times) -> FloatArray:
        return 1 - np.asarray(t, np.float64)

    def sigma(self, t: Times) -> FloatArray:
        return np.asarray(t, np.float64)

    def alpha_prime(self, t: Times) -> FloatArray:
        return -np.ones_like(np.asarray(t, np.float64))

    def sigma_prime(self, t: Times) -> FloatArray:
        return np.ones_like(np.asarray(t, np.float64))

    def time(self, log_snr: Times) -> FloatArray:
        return np.exp(-np.logaddexp(0, np.asarray(log_snr, np.float64) / 2))


@dataclasses.dataclass(frozen=True)
class EDM(Trajectory):
    """``z_t = x0 + sigma(t) noise`` with a log-normal ``sigma`` (Karras et al. 2022).

    Args:
        mean, std: P_m and P_s of ``ln sigma``.
        data_std: of the data, which scales the network's input.
    """

    mean: float = -1.2
    std: float = 1.2
    data_std: float = 0.5

    def alpha(self, t: Times) -> FloatArray:
        return np.ones_like(np.asarray(t, np.float64))

    def sigma(self, t: Times) -> FloatArray:
        return np.exp(self.mean + self.std * normal_icdf(t))

    def alpha_prime(self, t: Times) -> FloatArray:
        return np.zeros_like(np.asarray(t, np.float64))

    def sigma_prime(self, t: Times) -> FloatArray:
        bell = np.exp(-(normal_icdf(t) ** 2) / 2) / math.sqrt(2 * math.pi)
        return self.sigma(t) * self.std / bell

    def time(self, log_snr: Times) -> FloatArray:
        # the last double below 1 has sigma = exp(mean + 8.2 std)
        t = normal_cdf((-np.asarray(log_snr, np.float64) / 2 - self.mean) / self.std)
        return np.clip(t, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)

    def input_scale(self, t: Times) -> FloatArray:
        return 1 / np.sqrt(self.sigma(t) ** 2 + self.data_std**2)


@dataclasses.dataclass(frozen=True)
class Cosine(Trajectory):
    """``z_t = cos(pi t / 2) x0 + sin(pi t / 2) noise`` (Nichol and Dhariwal 2021)."""

    def alpha(self, t: Times) -> FloatArray:
        return np.sin(math.pi / 2 * (1 - np.asarray(t, np.float64)))  # exactly 0 at t = 1

    def sigma(self, t: Times) -> FloatArray:
        return np.sin(math.pi / 2 * np.asarray(t, np.float64))

    def alpha_prime(self, t: Times) -> FloatArray:
        return -math.pi / 2 * self.sigma(t)

    def sigma_prime(self, t: Times) -> FloatArray:
        return math.pi / 2 * self.alpha(t)

    def time(self, log_snr: Times) -> FloatArray:
        return 2 / math.pi * np.arctan(np.exp(-np.asarray(log_snr, np.float64) / 2))


@dataclasses.dataclass(frozen=True)
class LDMLinear(Trajectory):
    """The discrete diffusion of LDM and Stable Diffusion 1 and 2 ("scaled_linear" in diffusers), made continuous.

    ``alpha^2`` at ``t = (i + 1) / T`` is the product of ``1 - beta`` up to index i; its logarithm is linear between
    these times and 0 at t = 0. The network is told the index, as diffusers tells it.

    Args:
        beta_start, beta_end: the roots of beta rise linearly between the roots of these.
        num_train_timesteps: T.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_train_timesteps: int = 1000

    @functools.cached_property
    def _log_alpha_squared(self):
        betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps) ** 2
        return np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])

    def _log_alpha(self, t):
        position = np.asarray(t, np.float64) * self.num_train_timesteps
        return np.interp(position, np.arange(self.num_train_timesteps + 1), self._log_alpha_squared) / 2

    def alpha(self, t: Times) -> FloatArray:
        return np.exp(self._log_alpha(t))

    def sigma(self, t: Times) -> FloatArray:
        return np.sqrt(-np.expm1(2 * self._log_alpha(t)))

    def alpha_prime(self, t: Times) -> FloatArray:
        steps = self.num_train_timesteps
        step = np.clip((np.asarray(t, np.float64) * steps).astype(np.int64), 0, steps - 1)
        return self.alpha(t) * np.diff(self._log_alpha_squared)[step] * steps / 2

    def sigma_prime(self, t: Times) -> FloatArray:
        return -self.alpha(t) * self.alpha_prime(t) / self.sigma(t)  # alpha^2 + sigma^2 = 1

    def time(self, log_snr: Times) -> FloatArray:
        log_alpha_squared = -np.logaddexp(0, -np.asarray(log_snr, np.float64))
        positions = np.arange(self.num_train_timesteps + 1.0)
        return np.interp(-log_alpha_squared, -self._log_alpha_squared, positions) / self.num_train_timesteps

    def timestep(self, t: Times) -> FloatArray:
        """The index ``T t - 1`` into diffusers' table."""
        return self.num_train_timesteps * np.asarray(t, np.float64) - 1


def _edm_target(path, t):
    """``F = (x0 - c_skip z) / c_out`` of Karras et al. 2022, table 1."""
    ratio, spread = path.sigma(t) / path.alpha(t), path.data_std
    norm = np.sqrt(ratio**2 + spread**2)
    return ratio / (spread * norm), -spread / norm


# What a network may predict: x0 and the noise enter the target with these factors at time t.
PREDICTIONS: dict[str, Callable[[Any, Times], Coefficients]] = {
    "velocity": lambda path, t: (path.alpha_prime(t), path.sigma_prime(t)),
    "epsilon": lambda path, t: (np.zeros_like(path.alpha(t)), np.ones_like(path.alpha(t))),
    "sample": lambda path, t: (np.ones_like(path.alpha(t)), np.zeros_like(path.alpha(t))),
    "v_prediction": lambda path, t: (-path.sigma(t), path.alpha(t)),
    "F": _edm_target,
}


@checks_arguments
@dataclasses.dataclass(frozen=True)
class Objective:
    """A trajectory and what the network predicts on it.

    Args:
        trajectory: default :class:`RectifiedFlow`.
        prediction: "velocity" (of the path), "epsilon" (the noise), "sample" (the data), "v_prediction" (``alpha noise
            - sigma x0``; Salimans and Ho 2022) or "F" (the preconditioned output of :class:`EDM`).

    Raises:
        InputError: an unknown prediction, or "F" on a trajectory without ``data_std``.
    """

    trajectory: Trajectory = RectifiedFlow()
    prediction: str = "velocity"

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise InputError(f"prediction={self.prediction!r} is unknown: use one of {', '.join(PREDICTIONS)}.")
        if self.prediction == "F" and not isinstance(self.trajectory, EDM):
            raise InputError(f"prediction='F' belongs to EDM, not to {type(self.trajectory).__name__}.")

    def target_coefficients(self, t: Times) -> Coefficients:
        """Factors of x0 and of the noise in the target at ``t``."""
        return PREDICTIONS[self.prediction](self.trajectory, t)

    def target(self, x0: paddle.Tensor, noise: paddle.Tensor, t: Times) -> paddle.Tensor:
        """What the network should predict, [B, ...]; ``t [B]``."""
        of_data, of_noise = self.target_coefficients(t)
        return combine(of_data, x0, of_noise, noise)

    def data_and_noise(
        self, prediction: paddle.Tensor, z: paddle.Tensor, t: Times
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The x0 and the noise that a prediction at ``z [B, ...]``, ``t [B]`` means: two linear equations, solved."""
        alpha, sigma = self.trajectory.alpha(t), self.trajectory.sigma(t)
        of_data, of_noise = self.target_coefficients(t)
        determinant = self._determinant(t)
        x0 = combine(of_noise / determinant, z, -sigma / determinant, prediction)
        return x0, combine(-of_data / determinant, z, alpha / determinant, prediction)

    def velocity(self, prediction: paddle.Tensor, z: paddle.Tensor, t: Times) -> paddle.Tensor:
        """The field ``dz/dt`` that a prediction means, [B, ...]."""
        return self.trajectory.velocity(*self.data_and_noise(prediction, z, t), t)

    def weight(self, t: Times) -> FloatArray:
        """The paper's ``w_t`` of the plain squared error of this prediction.

        For a rectified flow's velocity ``t / (1 - t)``; up to a constant ``sech(lambda / 2)`` for the noise and
        ``e^(-lambda / 2)`` for v on :class:`Cosine`, ``N(lambda; -2 P_m, 4 P_s^2) (e^-lambda + 0.5^2)`` for "F" on
        :class:`EDM`. For the velocity it is ``-1/2 lambda' sigma^2``, the weight of conditional flow matching.
        """
        return -2 * (self._determinant(t) / self.trajectory.alpha(t)) ** 2 / self.trajectory.log_snr_prime(t)

    def noise_error_factor(self, t: Times) -> FloatArray:
        """What the squared error of the prediction is multiplied by to be that of the noise that it means."""
        return (self.trajectory.alpha(t) / self._determinant(t)) ** 2

    def weighted_loss_factor(self, t: Times, weight: FloatArray) -> FloatArray:
        """The factor of the prediction's squared error that makes it ``L_w`` with ``w_t = weight``."""
        return -0.5 * weight * self.trajectory.log_snr_prime(t) * self.noise_error_factor(t)

    def _determinant(self, t):
        of_data, of_noise = self.target_coefficients(t)
        return self.trajectory.alpha(t) * of_noise - self.trajectory.sigma(t) * of_data


def scaled(a: FloatArray, x: paddle.Tensor) -> paddle.Tensor:
    """``a x`` for a tensor [B, ...] and factors ``[B]`` or a scalar, in the dtype of ``x``."""
    return _factor(a, x) * x


def combine(a: FloatArray, x: paddle.Tensor, b: FloatArray, y: paddle.Tensor) -> paddle.Tensor:
    """``a x + b y`` for tensors [B, ...] and factors ``[B]`` or scalars, in the dtype of ``x``."""
    return scaled(a, x) + scaled(b, y)


def _factor(a, like):
    values = np.asarray(a, np.float64).astype(np.float32)
    return paddle.to_tensor(values.reshape([-1] + [1] * (like.ndim - 1))).astype(like.dtype)


@checks_arguments
def loss_weight(name: str, t: Times, snr_gamma: float = 5.0) -> FloatArray:
    """Factors of a rectified flow's squared velocity error at times ``t``, beside whatever density draws these.

    Args:
        name: "none"; "sigma_sqrt", ``1 / t^2``; "cosmap", the CosMap density (both diffusers' names); "precondition",
            ``t^2``, the squared error of the data that the velocity means, which diffusers' scripts train by default
            (``--precondition_outputs 1``); "min_snr", ``min((1 - t)^2, snr_gamma t^2)``: with SNR
            ``((1 - t) / t)^2`` the weight ``min(SNR, gamma)`` of the error of the data (Hang et al. 2023), which is
            ``t^2`` times the velocity's. Several are multiplied: "cosmap*precondition".
        snr_gamma: of "min_snr".

    Raises:
        InputError: an unknown name, or ``snr_gamma`` is not positive.
    """
    t = np.asarray(t, np.float64)
    if not snr_gamma > 0:
        raise InputError(f"snr_gamma is {snr_gamma!r}; it must be positive.")
    weights = {
        "none": lambda: np.ones_like(t),
        "sigma_sqrt": lambda: t**-2,
        "cosmap": lambda: CosMap().density(t),
        "precondition": lambda: t**2,
        "min_snr": lambda: np.minimum((1 - t) ** 2, snr_gamma * t**2),
    }
    parts = name.split("*")
    if not set(parts) <= set(weights):
        raise InputError(f"loss_weight={name!r} is unknown: use {', '.join(map(repr, weights))}.")
    return math.prod((weights[part]() for part in parts), start=np.ones_like(t))
