"""Image to image with Stable Diffusion 3 and 3.5."""

import dataclasses

from ..call_signature import takes
from .arguments import ImageToImageArguments
from .base import ImageEncoderComponents, StableDiffusion3Base
from .pipeline_output import StableDiffusion3PipelineOutput
from .tasks import ImageToImage


@dataclasses.dataclass(eq=False, repr=False)
class StableDiffusion3Img2ImgPipeline(ImageEncoderComponents, StableDiffusion3Base):
    """Redraws a picture from one with noise on it (SDEdit, Meng et al., 2022); counterpart of diffusers' class of the
    same name, with the same call. Loads the checkpoints of :class:`StableDiffusion3Pipeline`.
    """

    @takes(ImageToImageArguments)
    def __call__(self, arguments: ImageToImageArguments) -> StableDiffusion3PipelineOutput:
        """Draws ``num_images_per_prompt`` pictures for each prompt, from ``image`` or, in its place, ``latents``.

        Returns:
            The output, or a tuple of its ``images`` without ``return_dict``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead. All are checked first.
        """
        return self._draw(ImageToImage(arguments.image, arguments.strength), arguments)
