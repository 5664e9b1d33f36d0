"""Densities of training times (paper, section 3.1; figures in section 2).

Data is at t = 0 and noise at t = 1, so that mass near 1 trains on more noise. diffusers' scripts count the other way:
a positive ``--logit_mean`` there is *less* noise; :class:`Indexed` draws what they draw.

All arithmetic is float64, and every time lies strictly inside (0, 1), where weights with 1 / t and 1 / (1 - t) are
finite.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from statistics import NormalDist
from typing import Any, Union

import numpy as np

from ..schedulers.flow_sigmas import shift_sigmas, training_sigmas
from ..utils.checking import checks_arguments
from ..utils.errors import InputError

FloatArray = np.ndarray
Times = Union[float, np.ndarray]

_NORMAL = NormalDist()
_SMALLEST, _LARGEST = np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg
normal_cdf = np.vectorize(_NORMAL.cdf, otypes=[np.float64])
normal_icdf = np.vectorize(_NORMAL.inv_cdf, otypes=[np.float64])


class Density(abc.ABC):
    """A law of times in (0, 1), described by its quantiles."""

    @abc.abstractmethod
    def icdf(self, u: Times) -> FloatArray:
        """Quantiles: shares ``u`` in (0, 1) -> times."""

    @abc.abstractmethod
    def cdf(self, t: Times) -> FloatArray:
        """Share of the times below ``t`` in (0, 1)."""

    @abc.abstractmethod
    def density(self, t: Times) -> FloatArray:
        """Probability density at ``t`` in (0, 1); integrates to 1."""

    def sample(self, rng: np.random.Generator, batch: int, stratified: bool = False) -> FloatArray:
        """Draws ``batch`` times, float64 ``[batch]``.

        Args:
            stratified: one time from each of ``batch`` equally likely intervals, in random order. The law of each time
                is the same; the loss of a batch varies less.
        """
        u = rng.random(batch)
        if stratified:
            u = (rng.permutation(batch) + u) / batch
        return np.clip(self.icdf(np.clip(u, _SMALLEST, _LARGEST)), _SMALLEST, _LARGEST)

    def shifted(self, shift: float) -> Density:
        """The law of ``shift t / (1 + (shift - 1) t)`` (paper, section 5.3.2), as schedulers shift their sigmas.

        Raises:
            InputError: ``shift`` is not a positive number.
        """
        return self if shift == 1 else Shifted(self, shift)


@dataclasses.dataclass(frozen=True)
class Uniform(Density):
    """All times alike."""

    def icdf(self, u: Times) -> FloatArray:
        return np.asarray(u, np.float64)

    def cdf(self, t: Times) -> FloatArray:
        return np.asarray(t, np.float64)

    def density(self, t: Times) -> FloatArray:
        return np.ones_like(np.asarray(t, np.float64))


@checks_arguments
@dataclasses.dataclass(frozen=True)
class LogitNormal(Density):
    """``logit(t) ~ N(mean, std^2)``. SD3 trains with (0, 1).

    Args:
        mean: larger is more noise, as in the paper.
        std: larger gives both ends more.

    Raises:
        InputError: ``mean`` is not finite, or ``std`` is not positive.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise InputError(f"logit_mean is {self.mean!r}; it must be a finite number.")
        _check_positive("logit_std", self.std)

    def icdf(self, u: Times) -> FloatArray:
        return _sigmoid(self.mean + self.std * normal_icdf(u))

    def cdf(self, t: Times) -> FloatArray:
        return normal_cdf((_logit(t) - self.mean) / self.std)

    def density(self, t: Times) -> FloatArray:
        t = np.asarray(t, np.float64)
        deviation = (_logit(t) - self.mean) / self.std
        return np.exp(-(deviation**2) / 2) / (self.std * math.sqrt(2 * math.pi) * t * (1 - t))

    def shifted(self, shift: float) -> Density:
        """In closed form: the mean grows by ``ln shift``."""
        _check_positive("shift", shift)
        return LogitNormal(self.mean + math.log(shift), self.std)


@checks_arguments
@dataclasses.dataclass(frozen=True)
class Mode(Density):
    """The paper's law with a mode and heavy tails: ``t = 1 - u - scale (cos^2(pi u / 2) - 1 + u)``, ``u`` uniform.

    Args:
        scale: in [-1, 2 / (pi - 2)]. Positive favours the middle, negative the ends, 0 is uniform. The paper's best of
            the kind is 1.29.

    Raises:
        InputError: ``scale`` is outside; the times would leave (0, 1) or go back and forth.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise InputError(
                f"mode_scale is {self.scale!r}; it must lie between -1 and 2 / (pi - 2) = 1.7519, where times stay in "
                "(0, 1)."
            )

    # The law is symmetric about 1/2; all is worked out on the side of 0, where no digits cancel.

    def _time(self, u):
        return u + self.scale * (u - np.sin(math.pi / 2 * u) ** 2)

    def _share(self, t):
        """Inverse of :meth:`_time`: bisection, which monotony makes safe, to the last digit."""
        low, high = np.zeros_like(t), np.full_like(t, 0.5)
        for _ in range(100):
            middle = (low + high) / 2
            below = self._time(middle) < t
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    def icdf(self, u: Times) -> FloatArray:
        return _mirrored(self._time, u)

    def cdf(self, t: Times) -> FloatArray:
        return _mirrored(self._share, t)

    def density(self, t: Times) -> FloatArray:
        t = np.asarray(t, np.float64)
        u = self._share(np.minimum(t, 1 - t))
        return 1 / (1 + self.scale * (1 - math.pi / 2 * np.sin(math.pi * u)))


@dataclasses.dataclass(frozen=True)
class CosMap(Density):
    """Times whose log-SNR is spread as a cosine schedule spreads it: ``t = 1 - 1 / (tan(pi u / 2) + 1)``."""

    def icdf(self, u: Times) -> FloatArray:
        angle = math.pi / 2 * np.asarray(u, np.float64)
        return np.sin(angle) / (np.sin(angle) + np.cos(angle))

    def cdf(self, t: Times) -> FloatArray:
        t = np.asarray(t, np.float64)
        return 2 / math.pi * np.arctan2(t, 1 - t)

    def density(self, t: Times) -> FloatArray:
        t = np.asarray(t, np.float64)
        return 2 / (math.pi * (1 - 2 * t + 2 * t**2))


@checks_arguments
@dataclasses.dataclass(frozen=True)
class Shifted(Density):
    """The law of ``shift t / (1 + (shift - 1) t)`` for ``t`` of another law; see :meth:`Density.shifted`."""

    base: Density
    shift: float

    def __post_init__(self) -> None:
        _check_positive("shift", self.shift)

    def icdf(self, u: Times) -> FloatArray:
        return shift_sigmas(self.base.icdf(u), self.shift)

    def cdf(self, t: Times) -> FloatArray:
        return self.base.cdf(shift_sigmas(np.asarray(t, np.float64), 1 / self.shift))

    def density(self, t: Times) -> FloatArray:
        t = np.asarray(t, np.float64)
        slope = self.shift / (self.shift + (1 - self.shift) * t) ** 2
        return self.base.density(shift_sigmas(t, 1 / self.shift)) * slope


@checks_arguments
@dataclasses.dataclass(frozen=True)
class Indexed:
    """What diffusers' scripts draw: entry ``floor(T u)`` of a scheduler's table, which begins with pure noise.

    So ``u`` runs from noise to data, against the other laws of this module: the table at ``u`` is the shifted time
    ``1 - u``. The times are ``T`` numbers, hence no density.

    Args:
        base: the law of ``u``.
        shift: of the scheduler, e.g. 3 for SD3.
        num_train_timesteps: T, the length of the table.
    """

    base: Density
    shift: float = 1.0
    num_train_timesteps: int = 1000

    def sample(self, rng: np.random.Generator, batch: int, stratified: bool = False) -> FloatArray:
        """Draws ``batch`` times, float64 ``[batch]`` in (0, 1]; the first entry of the table is 1."""
        index = (self.base.sample(rng, batch, stratified) * self.num_train_timesteps).astype(np.int64)
        return training_sigmas(self.num_train_timesteps, self.shift)[index].astype(np.float64)

    def shifted(self, shift: float) -> Indexed:
        """The same draws from the table of another shift."""
        return dataclasses.replace(self, shift=self.shift * shift)


@checks_arguments
def timestep_density(
    name: str, logit_mean: float = 0.0, logit_std: float = 1.0, mode_scale: float = 1.29, shift: float = 1.0
) -> Density:
    """A density by the name that configurations have for it.

    Args:
        name: "uniform", "logit_normal" (SD3, with mean 0 and standard deviation 1), "mode" or "cosmap".
        logit_mean, logit_std: of "logit_normal"; a larger mean is more noise.
        mode_scale: of "mode".
        shift: towards noise, for large pictures; see :meth:`Density.shifted`.

    Raises:
        InputError: an unknown name, or a parameter outside its domain.
    """
    _check_positive("shift", shift)
    densities: dict[str, Any] = {
        "uniform": Uniform,
        "logit_normal": lambda: LogitNormal(logit_mean, logit_std),
        "mode": lambda: Mode(mode_scale),
        "cosmap": CosMap,
    }
    if name not in densities:
        raise InputError(f"density={name!r} is unknown: use 'uniform', 'logit_normal', 'mode' or 'cosmap'.")
    return densities[name]().shifted(shift)


def _mirrored(function, x):
    """``function(x)`` for x up to 1/2, and ``1 - function(1 - x)`` above."""
    x = np.asarray(x, np.float64)
    value = function(np.minimum(x, 1 - x))
    return np.where(x <= 0.5, value, 1 - value)


def _check_positive(name, value):
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} is {value!r}; it must be a positive number.")


def _sigmoid(x):
    """To full relative precision at both ends, unlike ``1 / (1 + exp(-x))`` where exp overflows."""
    return np.exp(-np.logaddexp(0, -x))


def _logit(t):
    t = np.asarray(t, np.float64)
    return np.log(t) - np.log1p(-t)
