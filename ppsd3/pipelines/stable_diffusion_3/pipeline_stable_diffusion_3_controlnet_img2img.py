"""Image to image with Stable Diffusion 3 and 3.5 and ControlNets."""

from ..call_signature import takes
from .arguments import ControlImageToImageArguments
from .controlnet_base import StableDiffusion3ControlNetBase
from .pipeline_output import StableDiffusion3PipelineOutput
from .tasks import ImageToImage


class StableDiffusion3ControlNetImg2ImgPipeline(StableDiffusion3ControlNetBase):
    """Redraws a picture, guided by another one. (diffusers has this for Stable Diffusion XL alone.)"""

    @takes(ControlImageToImageArguments)
    def __call__(self, arguments: ControlImageToImageArguments) -> StableDiffusion3PipelineOutput:
        """Draws ``num_images_per_prompt`` pictures for each prompt, from ``image`` and guided by ``control_image``.

        Returns:
            The output, or a tuple of its ``images`` without ``return_dict``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead. All are checked first.
        """
        return self._draw_controlled(ImageToImage(arguments.image, arguments.strength), arguments)
