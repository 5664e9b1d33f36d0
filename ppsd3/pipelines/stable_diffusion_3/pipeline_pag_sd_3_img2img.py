"""Image to image with perturbed-attention guidance."""

from ..call_signature import takes
from .arguments import PAGImageToImageArguments
from .pag_base import StableDiffusion3PAGBase
from .pipeline_output import StableDiffusion3PipelineOutput
from .tasks import ImageToImage


class StableDiffusion3PAGImg2ImgPipeline(StableDiffusion3PAGBase):
    """Redraws a picture as :class:`StableDiffusion3Img2ImgPipeline` does, with the arguments of perturbed-attention
    guidance; counterpart of diffusers' class.
    """

    @takes(PAGImageToImageArguments)
    def __call__(self, arguments: PAGImageToImageArguments) -> StableDiffusion3PipelineOutput:
        """Draws ``num_images_per_prompt`` pictures for each prompt, from ``image`` or, in its place, ``latents``.

        Returns:
            The output, or a tuple of its ``images`` without ``return_dict``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead. All are checked first.
        """
        return self._draw(ImageToImage(arguments.image, arguments.strength), arguments)
