"""DPM-Solver++ on flows; counterpart of diffusers' class as it is configured for flow models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from ..configuration_utils import register_to_config
from ..ops.shapes import cast
from ..utils.checking import checks_arguments
from ..utils.config_types import Shift, Steps
from ..utils.random import Generator, randn
from . import flow_sigmas
from .flow_multistep import FlowMultistepScheduler
from .flow_scheduler import Mu, Sigmas, StepCount, Timestep, check_choice
from .scheduling_utils import SchedulerOutput


class DPMSolverMultistepScheduler(FlowMultistepScheduler):
    """DPM-Solver++ of order 1 to 3, deterministic or stochastic (Lu et al., 2022, "DPM-Solver++").

    One model call per step; order 2, the default ("2M"), is what SD3's reference code and its users sample with.
    Schedules and steps agree with diffusers 0.42's class made with ``use_flow_sigmas=True`` and
    ``prediction_type="flow_prediction"``.

    Args:
        num_train_timesteps: T.
        solver_order: 1, 2 (default) or 3.
        prediction_type: "flow_prediction".
        algorithm_type: "dpmsolver++" (default) or "sde-dpmsolver++".
        solver_type: of order 2, "midpoint" (default) or "heun".
        lower_order_final: lower orders for the last steps of runs of less than 15 steps.
        euler_at_final: kept for diffusers' files; the last step is of order 1 in any case.
        use_flow_sigmas: True.
        flow_shift: static shift; SD3 has 3.0.
        final_sigmas_type: "zero".
        use_dynamic_shifting: shift by the ``mu`` given to ``set_timesteps`` instead.
        time_shift_type: "exponential".
        thresholding, use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, use_lu_lambdas: False.

    Raises:
        ConfigError: a value that flows have no use for.
    """

    _solver_types = ("midpoint", "heun")

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: Steps = 1000,
        solver_order: int = 2,
        prediction_type: str = "flow_prediction",
        thresholding: bool = False,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = True,
        flow_shift: Shift = 1.0,
        final_sigmas_type: str = "zero",
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        check_choice("algorithm_type", algorithm_type, ("dpmsolver++", "sde-dpmsolver++"))
        check_choice("solver_type", solver_type, self._solver_types)
        self._set_up()

    @checks_arguments
    def set_timesteps(
        self,
        num_inference_steps: StepCount = None,
        device: Any = None,
        mu: Mu = None,
        sigmas: Sigmas = None,
    ) -> None:
        """Makes the schedule of a run and forgets the last one.

        Args:
            num_inference_steps: n; may be left out beside ``sigmas``.
            device: where ``sigmas`` and ``timesteps`` are put.
            mu: amount of dynamic shift; required by, and only for, ``use_dynamic_shifting``.
            sigmas: ``[n]``, falling, below 1; still shifted.

        Raises:
            InputError: numbers of steps that disagree, or ``mu`` missing or without use.
        """
        steps = self._checked_steps(num_inference_steps, sigmas, mu)
        if sigmas is None:
            plain = (1.0 - np.linspace(1, 1 / self.config.num_train_timesteps, steps + 1))[::-1][:-1]
        else:
            plain = np.minimum(np.asarray(sigmas, np.float64), 1.0 - 1e-6)  # lambda is infinite at 1
        shift = self.shift if mu is None else math.exp(mu)
        self._finish_schedule(flow_sigmas.shift_sigmas(plain, shift), steps, device)

    @checks_arguments
    def step(
        self,
        model_output: paddle.Tensor,
        timestep: Timestep,
        sample: paddle.Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        variance_noise: paddle.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[paddle.Tensor]:
        """One step, in float32.

        Args:
            model_output: [B, ...], the velocity.
            timestep: an entry of ``timesteps``; read only to find the first step's index.
            sample: [B, ...], the current sample.
            generator: source of the noise of "sde-dpmsolver++".
            variance_noise: [B, ...], that noise itself.
            return_dict: False returns ``(prev_sample,)``.

        Returns:
            SchedulerOutput with ``prev_sample`` in the dtype of ``model_output``.

        Raises:
            InputError: no step left in the schedule.
        """
        self._begin_step(timestep, model_output, sample)
        sample = cast(sample, "float32")
        self._remember(self._predicted_picture(model_output, sample))
        noise = None
        if self.config.algorithm_type == "sde-dpmsolver++":
            noise = randn(sample.shape, generator) if variance_noise is None else cast(variance_noise, "float32")
        prev_sample = cast(self._update(sample, self._order(), noise), model_output.dtype)
        self._step_index += 1
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def _order(self):
        left = len(self._timestep_array) - self._step_index
        few = self.config.lower_order_final and len(self._timestep_array) < 15
        if left == 1:  # to sigma 0, where lambda is infinite
            return 1
        return min(len(self._pictures), 2 if left == 2 and few else 3)

    def _update(self, sample, order, noise):
        i = self._step_index
        sigma, sigma_next = self._sigma(i), self._sigma(i + 1)
        h = self._lambda(i + 1) - self._lambda(i)
        # Noise is taken away twice as fast as the deterministic flow does, and half of it added again.
        rate = h if noise is None else 2 * h
        vanishing = math.expm1(-rate)  # e^-rate - 1
        keep = sigma_next / sigma * (1.0 if noise is None else math.exp(-h))
        alpha = 1.0 - sigma_next
        newest = self._pictures[-1]
        result = keep * sample - alpha * vanishing * newest
        if order > 1:
            slope, curve = self._differences(order, h)
            by_midpoint = order == 2 and self.config.solver_type == "midpoint"
            weight = -0.5 * vanishing if by_midpoint else vanishing / rate + 1.0
            result = result + alpha * weight * slope
            if curve is not None:
                # diffusers gives the half another sign for the stochastic solver, whose steps then do not converge.
                result = result + alpha * (0.5 - (vanishing + rate) / rate**2) * curve
        if noise is not None:
            result = result + sigma_next * math.sqrt(-vanishing) * noise
        return result

    def _differences(self, order, h):
        """Divided differences of the predicted pictures by lambda, scaled by h: first, and second or None."""
        i, pictures = self._step_index, self._pictures
        r0 = (self._lambda(i) - self._lambda(i - 1)) / h
        first = (pictures[-1] - pictures[-2]) * (1.0 / r0)
        if order == 2:
            return first, None
        r1 = (self._lambda(i - 1) - self._lambda(i - 2)) / h
        older = (pictures[-2] - pictures[-3]) * (1.0 / r1)
        change = (first - older) * (1.0 / (r0 + r1))
        return first + r0 * change, change
