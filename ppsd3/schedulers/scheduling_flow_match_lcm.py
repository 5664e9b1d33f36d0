"""Consistency sampling of a flow: to the picture and back to noise; counterpart of diffusers' class."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F

from ..configuration_utils import register_to_config
from ..ops.shapes import cast
from ..utils.checking import checks_arguments
from ..utils.config_types import LogShift, Positive, Shift, Steps, Tokens
from ..utils.errors import InputError
from ..utils.random import Generator, randn
from .flow_scheduler import Timestep, check_choice, refuse_integer
from .scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from .scheduling_utils import SchedulerOutput


class FlowMatchLCMScheduler(FlowMatchEulerDiscreteScheduler):
    """Each step goes to the predicted picture and adds new noise of the next level: for models distilled to few steps
    (Luo et al., 2023, "Latent Consistency Models").

    Schedules are those of :class:`FlowMatchEulerDiscreteScheduler`.

    Args:
        num_train_timesteps ... time_shift_type: as there.
        scale_factors: n - 1 sizes, relative to the first latents, that the predicted
            picture is brought to after each step but the last (sampling that grows). Default None.
        upscale_mode: how, "nearest", "bilinear", "bicubic" (default) or "area".
    """

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
        scale_factors: Sequence[Positive] | None = None,
        upscale_mode: str = "bicubic",
    ) -> None:
        check_choice("upscale_mode", upscale_mode, ("nearest", "bilinear", "bicubic", "area"))
        self._set_up()
        self._first_size: Sequence[int] = ()

    @checks_arguments
    def step(
        self,
        model_output: paddle.Tensor,
        timestep: Timestep,
        sample: paddle.Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[paddle.Tensor]:
        """One step, in float32.

        Args:
            model_output: [B, C, H, W], the velocity.
            timestep: an entry of ``timesteps``; read only to find the first step's index.
            sample: [B, C, H, W], the current sample.
            generator: source of the noise, as in ``utils.random.randn``.
            return_dict: False returns ``(prev_sample,)``.

        Returns:
            SchedulerOutput with ``prev_sample`` in the dtype of ``model_output``.

        Raises:
            InputError: an integer timestep, no step left, or ``scale_factors`` of another number than steps - 1.
        """
        refuse_integer(timestep)
        factors = self.config.scale_factors
        if factors and len(self._timestep_array) != len(factors) + 1:
            raise InputError(
                f"The schedule has {len(self._timestep_array)} steps and the scheduler {len(factors)} scale_factors; "
                f"use {len(factors) + 1} steps."
            )
        is_first = self._step_index is None
        self._begin_step(timestep, model_output, sample)
        if is_first:
            self._first_size = model_output.shape[2:]
        sigma, sigma_next, _ = self._step_sigmas()
        picture = cast(sample, "float32") - sigma * cast(model_output, "float32")
        if factors and self._step_index < len(factors):
            size = [round(factors[self._step_index] * n) for n in self._first_size]
            picture = F.interpolate(picture, size=size, mode=self.config.upscale_mode)
        prev_sample = (1.0 - sigma_next) * picture + sigma_next * randn(picture.shape, generator)
        self._step_index += 1
        prev_sample = cast(prev_sample, model_output.dtype)
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)
