"""Heun's steps along the flow: two model calls each, of second order; counterpart of diffusers' class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import paddle

from ..configuration_utils import register_to_config
from ..ops.shapes import cast
from ..utils.checking import Range, checks_arguments
from ..utils.config_types import Shift, Steps
from ..utils.errors import InputError
from ..utils.random import Generator, randn
from . import flow_sigmas
from .flow_scheduler import MOST_STEPS, FlowScheduler, Timestep, refuse_integer
from .scheduling_utils import SchedulerOutput


class FlowMatchHeunDiscreteScheduler(FlowScheduler):
    """An Euler step, then the same step again with the mean of the velocities at its two ends (Karras et al., 2022,
    algorithm 1). The last step, to sigma 0, is Euler's, so n steps take 2n - 1 model calls.

    ``sigmas`` and ``timesteps`` have the bits of diffusers 0.42; both hold one entry for each model call.

    Args:
        num_train_timesteps: T; ``timestep = sigma * T``.
        shift: static shift of the schedule towards noise; SD3 has 3.0.
    """

    order = 2
    _config_aliases = {"flow_shift": "shift"}

    @register_to_config
    def __init__(self, num_train_timesteps: Steps = 1000, shift: Shift = 1.0) -> None:
        self.num_inference_steps = None
        sigmas = flow_sigmas.training_sigmas(num_train_timesteps, float(shift))
        self.sigma_min, self.sigma_max = float(sigmas[-1]), float(sigmas[0])
        self._install(sigmas, sigmas * num_train_timesteps)
        self._first = None

    @checks_arguments
    def set_timesteps(self, num_inference_steps: Annotated[int, Range(1, MOST_STEPS)], device: Any = None) -> None:
        """Makes the schedule of a run of ``num_inference_steps`` n: 2n - 1 timesteps.

        Raises:
            InputError: n is below 1.
        """
        steps = self._count_steps(num_inference_steps=num_inference_steps)
        scale, shift = self.config.num_train_timesteps, self.config.shift
        sigmas = np.linspace(self.sigma_max * scale, self.sigma_min * scale, steps) / scale
        sigmas = flow_sigmas.shift_sigmas(sigmas, shift).astype(np.float32)
        twice = np.concatenate([sigmas[:1], np.repeat(sigmas[1:], 2)])
        self._install(np.append(twice, np.float32(0)), twice * np.float32(scale), device)
        self.num_inference_steps, self._first = steps, None

    @property
    def state_in_first_order(self) -> bool:
        """Whether the coming call is the first of its step."""
        return self._first is None

    @checks_arguments
    def step(
        self,
        model_output: paddle.Tensor,
        timestep: Timestep,
        sample: paddle.Tensor,
        s_churn: Annotated[float, Range(0)] = 0.0,
        s_tmin: float = 0.0,
        s_tmax: Annotated[float, Range(most=math.inf)] = float("inf"),
        s_noise: float = 1.0,
        generator: Generator | Sequence[Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[paddle.Tensor]:
        """Half of a step, in float32: to its end, or, at the second call, the corrected way there.

        Args:
            model_output: [B, ...], the velocity.
            timestep: an entry of ``timesteps``; read only to find the first step's index.
            sample: [B, ...], the current sample.
            s_churn, s_tmin, s_tmax, s_noise: noise to add before a step whose sigma is in [s_tmin, s_tmax].
            generator: source of that noise.
            return_dict: False returns ``(prev_sample,)``.

        Returns:
            SchedulerOutput with ``prev_sample`` in the dtype of ``model_output``.

        Raises:
            InputError: an integer timestep, or no step left in the schedule.
        """
        refuse_integer(timestep)
        self._begin_step(timestep, model_output, sample)
        if self._step_index + 1 >= len(self._sigma_array):
            raise InputError("All steps of the schedule are done; call set_timesteps again.")
        velocity, sample = cast(model_output, "float32"), cast(sample, "float32")
        if self._first is None:
            sigma, sigma_next = map(float, self._sigma_array[self._step_index : self._step_index + 2])
            gamma = min(s_churn / (len(self._sigma_array) - 1), math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
            sigma_hat = sigma * (gamma + 1)
            if gamma > 0:
                noise = randn(sample.shape, generator) * s_noise
                sample = sample + noise * math.sqrt(sigma_hat**2 - sigma**2)
                velocity = velocity * (sigma / sigma_hat)
            dt = float(np.float32(sigma_next) - np.float32(sigma_hat))
            prev_sample = sample + dt * velocity
            if sigma_next > 0:  # the step to 0 has no second call
                self._first = sample, velocity, dt
        else:
            sample, first, dt = self._first
            prev_sample = sample + dt * 0.5 * (first + velocity)
            self._first = None
        self._step_index += 1
        prev_sample = cast(prev_sample, model_output.dtype)
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)
