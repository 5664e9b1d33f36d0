"""Text to image with perturbed-attention guidance; counterpart of diffusers' class of the same name."""

from .guidance import PerturbedAttentionGuidance
from .pipeline_stable_diffusion_3 import StableDiffusion3Pipeline


class StableDiffusion3PAGPipeline(StableDiffusion3Pipeline):
    """``StableDiffusion3Pipeline`` whose calls take ``pag_scale``: for ``guidance=PerturbedAttentionGuidance(...)``.

    Made from another pipeline by ``from_pipe``. Every task takes the object itself.
    """

    pag_applied_layers = "blocks.1"

    def set_pag_applied_layers(self, pag_applied_layers):
        """``pag_applied_layers`` (str, int or a list of them): the layers, see ``PerturbedAttentionGuidance``."""
        self.pag_applied_layers = pag_applied_layers

    def __call__(self, *args, guidance_scale=7.0, pag_scale=3.0, pag_adaptive_scale=0.0, **kwargs):
        """As ``StableDiffusion3Pipeline.__call__``, and:

        Args:
            pag_scale (float): weight of the perturbed-attention guidance; 0 for none. It acts without classifier-free
                guidance too.
            pag_adaptive_scale (float): weight lost for each unit of ``1000 - timestep``.
        """
        guidance = PerturbedAttentionGuidance(guidance_scale, self.pag_applied_layers, pag_scale, pag_adaptive_scale)
        return super().__call__(*args, guidance=guidance, **kwargs)
