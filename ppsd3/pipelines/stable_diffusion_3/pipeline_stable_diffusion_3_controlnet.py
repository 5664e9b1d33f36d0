"""Text to image with Stable Diffusion 3 and 3.5 and ControlNets."""

from ..call_signature import takes
from .arguments import ControlArguments
from .controlnet_base import StableDiffusion3ControlNetBase
from .pipeline_output import StableDiffusion3PipelineOutput
from .tasks import TextToImage


class StableDiffusion3ControlNetPipeline(StableDiffusion3ControlNetBase):
    """Draws pictures from prompts and pictures that guide them: edges, depth, poses; counterpart of diffusers' class of
    the same name, with the same call.
    """

    @takes(ControlArguments)
    def __call__(self, arguments: ControlArguments) -> StableDiffusion3PipelineOutput:
        """Draws ``num_images_per_prompt`` pictures for each prompt, guided by ``control_image``.

        Returns:
            The output, or a tuple of its ``images`` without ``return_dict``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead. All are checked first.
        """
        return self._draw_controlled(TextToImage(), arguments)
