"""Text to image with perturbed-attention guidance; counterpart of diffusers' class of the same name."""

from ...utils.errors import InputError
from ..residency import OnDemandNetwork
from .guidance import PerturbedAttentionGuidance, make_guidance
from .pipeline_stable_diffusion_3 import StableDiffusion3Pipeline


class StableDiffusion3PAGPipeline(StableDiffusion3Pipeline):
    """``StableDiffusion3Pipeline`` whose calls take ``pag_scale``: for ``guidance=PerturbedAttentionGuidance(...)``.

    Made from another pipeline by ``from_pipe``. Every task takes the object itself.
    """

    pag_applied_layers = "blocks.1"
    _pag = None  # the guidance of the present call

    def set_pag_applied_layers(self, pag_applied_layers):
        """``pag_applied_layers`` (str, int or a list of them): the layers, see ``PerturbedAttentionGuidance``."""
        self.pag_applied_layers = pag_applied_layers

    def __call__(self, *args, guidance_scale=7.0, pag_scale=3.0, pag_adaptive_scale=0.0, **kwargs):
        """As ``StableDiffusion3Pipeline.__call__``, and:

        Args:
            pag_scale (float): weight of the perturbed-attention guidance; 0 for none. It acts without classifier-free
                guidance too.
            pag_adaptive_scale (float): weight lost for each unit of ``1000 - timestep``.

        Raises:
            InputError: ``guidance`` or ``skip_guidance_layers``, for which there are the other pipelines.
        """
        for name in ("guidance", "skip_guidance_layers"):
            if kwargs.get(name) is not None:
                raise InputError(
                    f"`{name}` and `pag_scale` are two guidances. Use StableDiffusion3Pipeline with `guidance`."
                )
        self._pag = PerturbedAttentionGuidance(guidance_scale, self.pag_applied_layers, pag_scale, pag_adaptive_scale)
        return super().__call__(*args, guidance_scale=guidance_scale, **kwargs)

    def _check(self, call):
        super()._check(call)
        if not isinstance(self.transformer, OnDemandNetwork):
            self._pag.check(self.transformer)

    def _guidance(self):
        if self._pag.scale != self._guidance_scale:  # a callback changed it
            self._pag.base = make_guidance(self._guidance_scale)
        return self._pag
