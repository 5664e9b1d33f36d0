"""Euler steps along the flow from noise to picture; counterpart of diffusers' class of the same name."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import paddle

from ..configuration_utils import register_to_config
from ..ops.shapes import cast
from ..utils.checking import Range, checks_arguments
from ..utils.config_types import LogShift, Shift, Steps, Tokens
from ..utils.errors import ConfigError, InputError
from ..utils.logging import get_logger
from ..utils.random import Generator, randn
from . import flow_sigmas
from .flow_scheduler import (
    FlowScheduler,
    Mu,
    Sigmas,
    StepCount,
    Timestep,
    Timesteps,
    check_choice,
    check_falling,
    other_shape,
    refuse_integer,
)
from .scheduling_utils import SchedulerOutput

logger = get_logger(__name__)


class FlowMatchEulerDiscreteScheduler(FlowScheduler):
    """``x_next = x + (sigma_next - sigma) v`` with the model's velocity ``v = noise - x_0``.

    ``sigmas`` and ``timesteps`` have the bits of diffusers 0.42 in every mode. The state is a schedule and a
    position in it; the schedules themselves are the functions of ``flow_sigmas``.

    Args:
        num_train_timesteps: T; ``timestep = sigma * T``.
        shift: static shift of the schedule towards noise; SD3 has 3.0.
        use_dynamic_shifting: shift by the ``mu`` given to ``set_timesteps`` instead.
        base_shift, max_shift, base_image_seq_len, max_image_seq_len: ``mu`` at two numbers of image
            tokens, read by pipelines, which interpolate. Defaults 0.5 at 256 and 1.15 at 4096.
        invert_sigmas: run on ``1 - sigma`` (Mochi).
        shift_terminal: stretch the schedule to end at this sigma, in (0, 1) (LTX-Video).
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: other spacing between the first and the
            last sigma; at most one; beta needs scipy. Default False.
        time_shift_type: "exponential" (default) or "linear", the form of the dynamic shift.
        stochastic_sampling: each step goes to the predicted picture and is noised anew.

    Raises:
        ConfigError: a value that cannot be used, two spacings at once, or beta sigmas without scipy.

    Attributes:
        num_inference_steps: of the last ``set_timesteps``.
        sigma_min, sigma_max: ends of the training table, after the static shift.
    """

    _config_aliases = {"flow_shift": "shift"}

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: Steps = 1000,
        shift: Shift = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: LogShift = 0.5,
        max_shift: LogShift = 1.15,
        base_image_seq_len: Tokens = 256,
        max_image_seq_len: Tokens = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
    ) -> None:
        self._set_up()

    def _set_up(self):
        config = self.config
        _check_config(config)
        self.num_inference_steps = None
        self._shift = float(config.shift)
        sigmas = flow_sigmas.training_sigmas(
            config.num_train_timesteps, 1.0 if config.use_dynamic_shifting else self._shift
        )
        self.sigma_min, self.sigma_max = float(sigmas[-1]), float(sigmas[0])
        self._install(sigmas, sigmas * config.num_train_timesteps)

    @property
    def shift(self) -> float:
        """The static shift that the next ``set_timesteps`` will use."""
        return self._shift

    @checks_arguments
    def set_shift(self, shift: Annotated[float, Range(above=0)]) -> None:
        """Replaces the static shift for later ``set_timesteps``; ``config``, ``sigma_min`` and ``sigma_max`` stay."""
        self._shift = float(shift)

    @checks_arguments
    def time_shift(
        self,
        mu: Annotated[float, Range(-50, 50)],
        sigma: float,
        t: Annotated[float, Range(0, 1)] | np.ndarray | paddle.Tensor,
    ) -> Any:
        """The dynamic shift of ``t`` (number, array or tensor) in the form that ``config.time_shift_type`` names."""
        if isinstance(t, (int, float)) and t == 0:
            return 0.0
        return flow_sigmas.TIME_SHIFTS[self.config.time_shift_type](mu, sigma, t)  # type: ignore[arg-type]

    @checks_arguments
    def stretch_shift_to_terminal(self, t: np.ndarray | paddle.Tensor) -> Any:
        """``t`` (array or tensor ``[n]``), stretched so that its last value is ``config.shift_terminal``.

        Raises:
            InputError: the configuration has no ``shift_terminal``, or the last value is 1, from which no step leads.
        """
        if not self.config.shift_terminal:
            raise InputError("stretch_shift_to_terminal needs a scheduler made with shift_terminal=, e.g. 0.1.")
        if t.ndim != 1 or not len(t) or float(t[-1]) == 1.0:
            raise InputError(
                "A schedule that ends at sigma 1 or has no sigmas cannot be stretched. Use more steps, or lower sigmas."
            )
        stretched = flow_sigmas.stretch_shift_to_terminal(np.asarray(t), self.config.shift_terminal)
        return paddle.to_tensor(stretched, place=t.place) if isinstance(t, paddle.Tensor) else stretched

    @checks_arguments
    def set_timesteps(
        self,
        num_inference_steps: StepCount = None,
        device: Any = None,
        sigmas: Sigmas = None,
        mu: Mu = None,
        timesteps: Timesteps = None,
    ) -> None:
        """Makes the schedule of a run and forgets the position in the last one.

        Args:
            num_inference_steps: n; may be left out beside ``sigmas`` or ``timesteps``.
            device: where ``sigmas`` and ``timesteps`` are put.
            sigmas: ``[n]`` to use, falling; still shifted and converted.
            mu: amount of dynamic shift; required by, and only for, ``use_dynamic_shifting``.
            timesteps: ``[n]`` the model is called with. Alone they also give the
                sigmas, which are shifted while the timesteps are not: pass both to have both as you want them.

        Raises:
            InputError: lengths that disagree, nothing to count steps by, levels that rise or are out of the range, or
                ``mu`` missing or without use.
        """
        num_steps = self._check_schedule_arguments(num_inference_steps, sigmas, mu, timesteps)
        given = None if timesteps is None else np.array(timesteps, np.float32)
        if sigmas is not None:
            schedule = np.array(sigmas, np.float32)
        elif given is not None:
            schedule = given / self.config.num_train_timesteps
            logger.warning(
                "set_timesteps got timesteps without sigmas: the sigmas made from them are shifted, the timesteps "
                "are used as they are, and so the two may disagree. Pass sigmas, or both."
            )
        else:
            schedule = self._default_sigmas(num_steps)

        schedule = self._spaced(self._shifted(schedule, mu), num_steps)
        table = flow_sigmas.with_terminal(schedule, self.config.invert_sigmas)
        if given is None or self.config.invert_sigmas:
            given = table[:-1] * self.config.num_train_timesteps
        self._install(table, given, device)
        self.num_inference_steps = num_steps

    def _default_sigmas(self, num_steps):
        # sigma_min is already shifted and is shifted again below. The models are sampled so everywhere; undoing it
        # would change their pictures.
        scale = self.config.num_train_timesteps
        return np.linspace(self.sigma_max * scale, self.sigma_min * scale, num_steps) / scale

    def _shifted(self, sigmas, mu):
        if self.config.use_dynamic_shifting:
            with np.errstate(divide="ignore"):  # a sigma of 0 stays 0 by way of 1/0 = inf
                sigmas = self.time_shift(float(mu), 1.0, sigmas)
        else:
            sigmas = flow_sigmas.shift_sigmas(sigmas, self.shift)
        return self.stretch_shift_to_terminal(sigmas) if self.config.shift_terminal else sigmas

    def _spaced(self, sigmas, num_steps):
        first, last = sigmas[0].item(), sigmas[-1].item()
        if self.config.use_karras_sigmas:
            return flow_sigmas.karras_sigmas(last, first, num_steps)
        if self.config.use_exponential_sigmas:
            if min(first, last) <= 0:
                raise InputError(f"Exponential spacing needs sigmas above 0; these run from {first} to {last}.")
            return flow_sigmas.exponential_sigmas(last, first, num_steps)
        if self.config.use_beta_sigmas:
            return flow_sigmas.beta_sigmas(last, first, num_steps)
        return sigmas

    def _check_levels(self, sigmas, timesteps):
        check_falling("sigmas", sigmas)
        check_falling("timesteps", timesteps)
        most = self.config.num_train_timesteps
        if timesteps and timesteps[0] > most:
            raise InputError(f"`timesteps` begins at {timesteps[0]}, but this scheduler's go from {most} to 0.")

    def _check_schedule_arguments(self, num_inference_steps, sigmas, mu, timesteps):
        """The number of steps, after refusing what does not fit together."""
        if self.config.use_dynamic_shifting and mu is None:
            raise InputError("This scheduler has use_dynamic_shifting=True: pass set_timesteps(..., mu=).")
        if mu is not None and not self.config.use_dynamic_shifting:
            raise InputError(
                f"mu={mu} would change nothing: this scheduler has use_dynamic_shifting=False. Leave mu out, or make "
                "the scheduler with use_dynamic_shifting=True; set_shift(shift) changes the static shift."
            )
        if sigmas or timesteps:
            self._check_levels(sigmas, timesteps)
        return self._count_steps(num_inference_steps=num_inference_steps, sigmas=sigmas, timesteps=timesteps)

    @checks_arguments
    def step(
        self,
        model_output: paddle.Tensor,
        timestep: Timestep,
        sample: paddle.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generator | Sequence[Generator] | None = None,
        per_token_timesteps: paddle.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[paddle.Tensor]:
        """One Euler step, in float32.

        Args:
            model_output: [B, ...], the velocity.
            timestep: an entry of ``timesteps``; read only to find the first step's index.
            sample: [B, ...], the current sample.
            s_churn, s_tmin, s_tmax, s_noise: present for diffusers' signature, which ignores them; any
                value but the default is refused.
            generator: source of the noise of stochastic sampling, as in ``utils.random.randn``.
            per_token_timesteps: [B, N], one timestep per token of a ``[B, N, C]`` sample.
                Each token goes to the next lower sigma of the schedule; as in diffusers the step is then
                ``sigma - sigma_next`` (a model that predicts the opposite velocity) and the result stays float32.
            return_dict: False returns ``(prev_sample,)``.

        Returns:
            SchedulerOutput with ``prev_sample`` in the dtype of ``model_output``.

        Raises:
            InputError: an integer timestep, a churn argument, or no step left in the schedule.
        """
        _check_step_arguments(timestep, s_churn, s_tmin, s_tmax, s_noise)
        self._begin_step(timestep, model_output, sample)

        velocity, sample = cast(model_output, paddle.float32), cast(sample, paddle.float32)
        if per_token_timesteps is not None:
            if per_token_timesteps.shape != sample.shape[:2]:
                raise other_shape("per_token_timesteps", per_token_timesteps, sample)
            sigma, sigma_next, dt = self._per_token_sigmas(per_token_timesteps)
        else:
            sigma, sigma_next, dt = self._step_sigmas()

        if self.config.stochastic_sampling:
            x_0 = sample - sigma * velocity
            prev_sample = (1.0 - sigma_next) * x_0 + sigma_next * randn(sample.shape, generator)
        else:
            prev_sample = sample + dt * velocity

        self._step_index += 1
        if per_token_timesteps is None:
            prev_sample = cast(prev_sample, model_output.dtype)
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def _per_token_sigmas(self, per_token_timesteps):
        """The same three as float32 tensors ``[B, N, 1]``, with dt positive."""
        sigma = cast(per_token_timesteps, paddle.float32) / self.config.num_train_timesteps  # [B, N]
        table = paddle.to_tensor(self._sigma_array)[:, None, None]  # [n + 1, 1, 1]
        lower = (table < sigma[None] - 1e-6).astype(paddle.float32) * table  # [n + 1, B, N], 0 where not lower
        sigma, sigma_next = sigma[..., None], lower.max(axis=0)[..., None]
        return sigma, sigma_next, sigma - sigma_next


def _check_config(config):
    spacings = [k for k in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if config[k]]
    if len(spacings) > 1:
        raise ConfigError(f"{' and '.join(spacings)} exclude one another; set only one of them.")
    if config.use_beta_sigmas and importlib.util.find_spec("scipy") is None:
        raise ConfigError("use_beta_sigmas=True needs scipy: `pip install scipy`, or choose another spacing.")
    check_choice("time_shift_type", config.time_shift_type, tuple(flow_sigmas.TIME_SHIFTS))
    if config.base_image_seq_len == config.max_image_seq_len:
        raise ConfigError("base_image_seq_len and max_image_seq_len are equal; mu is a line through the two.")
    if config.shift_terminal and not 0 < config.shift_terminal < 1:
        raise ConfigError(f"shift_terminal={config.shift_terminal} must lie between 0 and 1, or be None.")


def _check_step_arguments(timestep, s_churn, s_tmin, s_tmax, s_noise):
    refuse_integer(timestep)
    if (s_churn, s_tmin, s_tmax, s_noise) != (0.0, 0.0, float("inf"), 1.0):
        raise InputError(
            "s_churn, s_tmin, s_tmax and s_noise have no effect in flow matching's Euler step; leave them out, "
            "or make the scheduler with stochastic_sampling=True."
        )
