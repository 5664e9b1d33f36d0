"""Text to image with Stable Diffusion 3 and 3.5."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import paddle

from ...utils.checking import Range, checks_arguments
from ..call_signature import takes
from . import checks
from .arguments import Generator, TextToImageArguments
from .base import ImageEncoderComponents, StableDiffusion3Base
from .latents import prepare_latents
from .pipeline_output import StableDiffusion3PipelineOutput
from .tasks import TextToImage


@dataclasses.dataclass(eq=False, repr=False)
class StableDiffusion3Pipeline(ImageEncoderComponents, StableDiffusion3Base):
    """Draws pictures from prompts with the MM-DiT of "Scaling Rectified Flow Transformers for High-Resolution Image
    Synthesis" (Esser et al., 2024); counterpart of diffusers' class of the same name, with the same call.
    """

    @takes(TextToImageArguments)
    def __call__(self, arguments: TextToImageArguments) -> StableDiffusion3PipelineOutput:
        """Draws ``num_images_per_prompt`` pictures for each prompt.

        Returns:
            The output, or a tuple of its ``images`` without ``return_dict``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead. All are checked first.
        """
        return self._draw(TextToImage(), arguments)

    @checks_arguments
    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: Annotated[int, Range(1, 1 << 16)],
        width: Annotated[int, Range(1, 1 << 16)],
        dtype: str | paddle.dtype,
        device: str | None = None,
        generator: Generator = None,
        latents: paddle.Tensor | None = None,
    ) -> paddle.Tensor:
        """Noise [batch_size, num_channels_latents, height / 8, width / 8] (sizes in pixels), or ``latents`` checked."""
        checks.check_device(device, self.device)
        grid = height // self.vae_scale_factor, width // self.vae_scale_factor
        return prepare_latents([batch_size, num_channels_latents, *grid], dtype, generator, latents)
