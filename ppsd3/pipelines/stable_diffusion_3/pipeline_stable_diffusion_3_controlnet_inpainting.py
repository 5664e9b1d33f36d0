"""Inpainting with ControlNets of Stable Diffusion 3 that read a mask."""

from ...utils.errors import InputError
from ..call_signature import takes
from ..image_processor import VaeImageProcessor, mask_processor
from .arguments import ControlInpaintingArguments
from .controlnet_base import StableDiffusion3ControlNetBase
from .pipeline_output import StableDiffusion3PipelineOutput
from .tasks import TextToImage


class StableDiffusion3ControlNetInpaintingPipeline(StableDiffusion3ControlNetBase):
    """Redraws the masked part of a picture by a ControlNet trained for it (``extra_conditioning_channels=1``).

    It starts from noise: only the ControlNet sees the picture. Counterpart of diffusers' class of the same name, with
    the same call.
    """

    @property
    def mask_processor(self) -> VaeImageProcessor:
        """Masks of any kind -> [B, 1, H, W] of 0 and 1."""
        return mask_processor(self.vae_scale_factor)

    @takes(ControlInpaintingArguments)
    def __call__(self, arguments: ControlInpaintingArguments) -> StableDiffusion3PipelineOutput:
        """Draws ``num_images_per_prompt`` pictures for each prompt, new where ``control_mask`` is white.

        Returns:
            The output, or a tuple of its ``images`` without ``return_dict``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead. All are checked first.
        """
        if arguments.control_mask is None:
            raise InputError("Inpainting needs `control_image` and `control_mask`. Pass both.")
        return self._draw_controlled(TextToImage(), arguments, arguments.control_mask)
