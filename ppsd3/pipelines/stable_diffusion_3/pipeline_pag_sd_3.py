"""Text to image with perturbed-attention guidance."""

from ..call_signature import takes
from .arguments import PAGTextToImageArguments
from .pag_base import StableDiffusion3PAGBase
from .pipeline_output import StableDiffusion3PipelineOutput
from .tasks import TextToImage


class StableDiffusion3PAGPipeline(StableDiffusion3PAGBase):
    """:class:`StableDiffusion3Pipeline` with perturbed-attention guidance; counterpart of diffusers' class."""

    @takes(PAGTextToImageArguments)
    def __call__(self, arguments: PAGTextToImageArguments) -> StableDiffusion3PipelineOutput:
        """Draws ``num_images_per_prompt`` pictures for each prompt.

        Returns:
            The output, or a tuple of its ``images`` without ``return_dict``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead. All are checked first.
        """
        return self._draw(TextToImage(), arguments)
