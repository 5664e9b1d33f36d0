"""Inpainting with Stable Diffusion 3 and 3.5."""

import dataclasses

from ..call_signature import takes
from ..image_processor import VaeImageProcessor, mask_processor
from .arguments import InpaintingArguments
from .base import ImageEncoderComponents, StableDiffusion3Base
from .pipeline_output import StableDiffusion3PipelineOutput
from .tasks import Inpainting


@dataclasses.dataclass(eq=False, repr=False)
class StableDiffusion3InpaintPipeline(ImageEncoderComponents, StableDiffusion3Base):
    """Redraws the masked part of a picture; counterpart of diffusers' class of the same name, with the same call.

    Any text-to-image transformer will do (16 channels: after each step the picture outside the mask comes back), and
    so will one that was trained to read mask and masked picture too (33 channels).
    """

    _callback_tensor_inputs = [*StableDiffusion3Base._callback_tensor_inputs, "mask", "masked_image_latents"]

    @property
    def mask_processor(self) -> VaeImageProcessor:
        """Masks of any kind -> [B, 1, H, W] of 0 and 1."""
        return mask_processor(self.vae_scale_factor)

    @takes(InpaintingArguments)
    def __call__(self, arguments: InpaintingArguments) -> StableDiffusion3PipelineOutput:
        """Draws ``num_images_per_prompt`` pictures for each prompt, new where ``mask_image`` is white.

        Returns:
            The output, or a tuple of its ``images`` without ``return_dict``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead. All are checked first.
        """
        task = Inpainting(
            arguments.image,
            arguments.mask_image,
            arguments.masked_image_latents,
            arguments.padding_mask_crop,
            arguments.strength,
        )
        return self._draw(task, arguments)
