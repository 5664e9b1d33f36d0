"""What the multistep solvers of a flow share: DPM-Solver++ and UniPC work with the predicted pictures of several steps.

In terms of ``lambda = log((1 - sigma) / sigma)``, half the log of the signal-to-noise ratio, the flow's solution is
linear in the predicted picture ``x_0 = x - sigma v``, which a polynomial through the last few approximates.
"""

from __future__ import annotations

import math

import numpy as np
import paddle

from ..ops.shapes import cast
from ..utils.errors import ConfigError, InputError
from . import flow_sigmas
from .flow_scheduler import FlowScheduler, Timestep, check_choice, check_falling

_OF_DIFFUSION_ALONE = (
    "beta_end", "beta_schedule", "beta_start", "dynamic_thresholding_ratio", "lambda_min_clipped",
    "rescale_betas_zero_snr", "sample_max_value", "sigma_max", "sigma_min", "steps_offset", "timestep_spacing",
    "trained_betas", "variance_type",
)  # fmt: skip


class FlowMultistepScheduler(FlowScheduler):
    """Base of the two. Keys of diffusers' classes that act on diffusion models alone are ignored."""

    ignored_config_keys = (*FlowScheduler.ignored_config_keys, *_OF_DIFFUSION_ALONE)
    _config_aliases = {"shift": "flow_shift"}

    def _set_up(self):
        config = self.config
        check_choice("prediction_type", config.prediction_type, ("flow_prediction",))
        check_choice("final_sigmas_type", config.final_sigmas_type, ("zero",))
        check_choice("time_shift_type", config.time_shift_type, ("exponential",))
        if not config.use_flow_sigmas:
            raise ConfigError(f"{type(self).__name__} samples flows only: use_flow_sigmas=True.")
        for name in (
            "thresholding",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas",
        ):
            if config.get(name, False):
                raise ConfigError(f"{name}=True has no effect on a flow's schedule. Leave it out.")
        if config.solver_order not in (1, 2, 3):
            raise ConfigError(f"solver_order={config.solver_order} must be 1, 2 or 3; 2 is best with guidance.")
        self.num_inference_steps = None
        sigmas = flow_sigmas.training_sigmas(config.num_train_timesteps, float(config.flow_shift))
        self._start(sigmas, sigmas * config.num_train_timesteps, None)

    @property
    def shift(self) -> float:
        """The static shift, ``flow_shift`` in the configuration."""
        return float(self.config.flow_shift)

    def _start(self, sigmas, timesteps, device):
        """Installs a schedule and forgets the last run."""
        self._install(sigmas, timesteps, device)
        self._pictures = []  # predicted ones, the newest last

    def _checked_steps(self, num_inference_steps, sigmas, mu):
        if mu is not None and not self.config.use_dynamic_shifting:
            raise InputError(
                f"mu={mu} would change nothing: this scheduler has use_dynamic_shifting=False. Leave mu out, or make "
                "the scheduler with use_dynamic_shifting=True; flow_shift= is the static shift."
            )
        if mu is None and self.config.use_dynamic_shifting:
            raise InputError("This scheduler has use_dynamic_shifting=True: pass set_timesteps(..., mu=).")
        check_falling("sigmas", sigmas, strictly=True)
        if sigmas and sigmas[-1] == 0:
            raise InputError("`sigmas` ends with 0, where the schedule goes by itself. Leave the 0 out.")
        return self._count_steps(num_inference_steps=num_inference_steps, sigmas=sigmas)

    def _finish_schedule(self, sigmas, steps, device):
        # Integer timesteps, cut off, are diffusers': the model hardly tells them from exact ones.
        timesteps = np.floor(sigmas * self.config.num_train_timesteps).astype(np.float32)
        self._start(np.append(sigmas.astype(np.float32), np.float32(0)), timesteps, device)
        self.num_inference_steps = steps

    def _sigma(self, index):
        return float(self._sigma_array[index])

    def _lambda(self, index):
        sigma = self._sigma(index)
        return math.inf if sigma == 0 else math.log(1.0 - sigma) - math.log(sigma)

    def _predicted_picture(self, model_output, sample):
        if self._step_index + 1 >= len(self._sigma_array):
            raise InputError("All steps of the schedule are done; call set_timesteps again.")
        return sample - self._sigma(self._step_index) * cast(model_output, "float32")

    def _remember(self, picture):
        self._pictures = [*self._pictures, picture][-self.config.solver_order :]

    def add_noise(self, original_samples: paddle.Tensor, noise: paddle.Tensor, timesteps: Timestep) -> paddle.Tensor:
        """``scale_noise`` with diffusers' name and order of arguments for these classes."""
        return self.scale_noise(original_samples, timesteps, noise)
