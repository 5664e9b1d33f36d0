"""UniPC on flows; counterpart of diffusers' class as it is configured for flow models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from ..configuration_utils import register_to_config
from ..ops.shapes import cast
from ..utils.checking import checks_arguments
from ..utils.config_types import Index, Shift, Steps
from ..utils.errors import ConfigError
from . import flow_sigmas
from .flow_multistep import FlowMultistepScheduler
from .flow_scheduler import Mu, Sigmas, StepCount, Timestep, check_choice
from .scheduling_utils import SchedulerOutput


class UniPCMultistepScheduler(FlowMultistepScheduler):
    """A predictor and, with the model's next answer, a corrector of the same step (Zhao et al., 2023, "UniPC").

    One model call per step. Schedules and steps agree with diffusers 0.42's class made with ``use_flow_sigmas=True``
    and ``prediction_type="flow_prediction"``.

    Args:
        num_train_timesteps: T.
        solver_order: 1, 2 (default) or 3.
        prediction_type: "flow_prediction".
        predict_x0: True.
        solver_type: "bh2" (default) or "bh1".
        lower_order_final: True.
        disable_corrector: steps without a corrector. Default none.
        use_flow_sigmas: True.
        flow_shift: static shift; SD3 has 3.0.
        final_sigmas_type: "zero".
        use_dynamic_shifting: shift by the ``mu`` given to ``set_timesteps`` instead.
        time_shift_type: "exponential".
        shift_terminal: stretch the schedule to end at this sigma, in (0, 1).
        thresholding, use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: False. ``solver_p``: None.

    Raises:
        ConfigError: a value that flows have no use for.
    """

    _solver_types = ("bh1", "bh2")

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: Steps = 1000,
        solver_order: int = 2,
        prediction_type: str = "flow_prediction",
        thresholding: bool = False,
        predict_x0: bool = True,
        solver_type: str = "bh2",
        lower_order_final: bool = True,
        disable_corrector: Sequence[Index] = (),
        solver_p: None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = True,
        flow_shift: Shift = 1.0,
        final_sigmas_type: str = "zero",
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
    ) -> None:
        check_choice("solver_type", solver_type, self._solver_types)
        if not (predict_x0 and lower_order_final and solver_p is None):
            raise ConfigError("A flow needs predict_x0=True, lower_order_final=True and solver_p=None.")
        if shift_terminal and not 0 < shift_terminal < 1:
            raise ConfigError(f"shift_terminal={shift_terminal} must lie between 0 and 1, or be None.")
        self._set_up()

    def _start(self, sigmas, timesteps, device):
        super()._start(sigmas, timesteps, device)
        self._last = None  # sample that the last step began with, after correction, and the step's order

    @checks_arguments
    def set_timesteps(
        self,
        num_inference_steps: StepCount = None,
        device: Any = None,
        sigmas: Sigmas = None,
        mu: Mu = None,
    ) -> None:
        """Makes the schedule of a run and forgets the last one.

        Args:
            num_inference_steps: n; may be left out beside ``sigmas``.
            device: where ``sigmas`` and ``timesteps`` are put.
            sigmas: ``[n]``, falling; still shifted.
            mu: amount of dynamic shift; required by, and only for, ``use_dynamic_shifting``.

        Raises:
            InputError: numbers of steps that disagree, or ``mu`` missing or without use.
        """
        steps = self._checked_steps(num_inference_steps, sigmas, mu)
        if sigmas is None:
            plain = np.linspace(1, 1 / self.config.num_train_timesteps, steps + 1)[:-1]
        else:
            plain = np.array(sigmas, np.float64)
        shifted = flow_sigmas.shift_sigmas(plain, self.shift if mu is None else math.exp(mu))
        if self.config.shift_terminal:
            shifted = flow_sigmas.stretch_shift_to_terminal(shifted, self.config.shift_terminal)
        if abs(shifted[0] - 1) < 1e-6:  # lambda is infinite at 1
            shifted[0] -= 1e-6
        self._finish_schedule(shifted, steps, device)

    @checks_arguments
    def step(
        self, model_output: paddle.Tensor, timestep: Timestep, sample: paddle.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[paddle.Tensor]:
        """Corrects the last step and takes the next one, in float32.

        Args:
            model_output: [B, ...], the velocity.
            timestep: an entry of ``timesteps``; read only to find the first step's index.
            sample: [B, ...], the current sample.
            return_dict: False returns ``(prev_sample,)``.

        Returns:
            SchedulerOutput with ``prev_sample`` in the dtype of ``model_output``.

        Raises:
            InputError: no step left in the schedule.
        """
        self._begin_step(timestep, model_output, sample)
        i, sample = self._step_index, cast(sample, "float32")
        picture = self._predicted_picture(model_output, sample)
        if self._last is not None and i - 1 not in self.config.disable_corrector:
            last_sample, order = self._last
            sample = self._solve(last_sample, i - 1, order, picture)
        self._remember(picture)
        left = len(self._timestep_array) - i
        order = min(self.config.solver_order, left, len(self._pictures))
        self._last = sample, order
        prev_sample = cast(self._solve(sample, i, order), model_output.dtype)
        self._step_index += 1
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def _solve(self, sample, i, order, corrected_by=None):
        """From ``sample`` at step ``i`` to the next sigma, by the remembered pictures, and the one at the step's end
        (``corrected_by``) where it is known."""
        newest = self._pictures[-1]
        here, h = self._lambda(i), self._lambda(i + 1) - self._lambda(i)
        ratios = [(self._lambda(i - k) - here) / h for k in range(1, order)] + [1.0]
        slopes = [(self._pictures[-1 - k] - newest) * (1.0 / ratios[k - 1]) for k in range(1, order)]
        weights, scale = self._weights(ratios, -h, order, predictor=corrected_by is None)
        if corrected_by is not None:
            slopes.append(corrected_by - newest)
        sigma_next = self._sigma(i + 1)
        alpha = 1.0 - sigma_next
        result = sigma_next / self._sigma(i) * sample - alpha * math.expm1(-h) * newest
        for weight, slope in zip(weights, slopes):
            result = result - alpha * scale * float(weight) * slope
        return result

    def _weights(self, ratios, h, order, predictor):
        """Weights of the slopes, and B(h): equations 9 and 11 of the paper, h negative for predicted pictures."""
        scale = h if self.config.solver_type == "bh1" else math.expm1(h)
        if predictor and order <= 2:  # the paper's simplification, exact to the same order
            return [0.5][: order - 1], scale
        if not predictor and order == 1:
            return [0.5], scale
        rows, right, phi, factorial = [], [], math.expm1(h) / h - 1, 1
        for k in range(1, order + 1):
            rows.append(np.power(ratios, k - 1))
            right.append(phi * factorial / scale)
            factorial *= k + 1
            phi = phi / h - 1 / factorial
        size = order - 1 if predictor else order
        return np.linalg.solve(np.array(rows)[:size, :size], np.array(right)[:size]), scale
