"""What the pipelines with perturbed-attention guidance have in common."""

from ..residency import OnDemandNetwork
from .base import StableDiffusion3Base
from .guidance import PerturbedAttentionGuidance, make_guidance


class StableDiffusion3PAGBase(StableDiffusion3Base):
    """A :class:`StableDiffusion3Base` whose calls take ``pag_scale``: for ``guidance=PerturbedAttentionGuidance(...)``.

    Args:
        pag_applied_layers (str, int or a list of them): the layers, see ``PerturbedAttentionGuidance``. Saved with the
            pipeline.
        the others: as in :class:`StableDiffusion3Pipeline`.
    """

    _settings = ("pag_applied_layers",)
    _pag = None  # the guidance of the present call

    def __init__(
        self,
        transformer,
        scheduler,
        vae,
        text_encoder,
        tokenizer,
        text_encoder_2,
        tokenizer_2,
        text_encoder_3,
        tokenizer_3,
        image_encoder=None,
        feature_extractor=None,
        pag_applied_layers="blocks.1",
    ):
        super().__init__(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        self.set_pag_applied_layers(pag_applied_layers)

    def set_pag_applied_layers(self, pag_applied_layers):
        """``pag_applied_layers`` (str, int or a list of them): the layers, see ``PerturbedAttentionGuidance``."""
        self.pag_applied_layers = pag_applied_layers

    def _perturb(self, guidance_scale, pag_scale, pag_adaptive_scale):
        """Takes a call's arguments."""
        self._pag = PerturbedAttentionGuidance(guidance_scale, self.pag_applied_layers, pag_scale, pag_adaptive_scale)

    def _check(self, call):
        super()._check(call)
        if not isinstance(self.transformer, OnDemandNetwork):
            self._pag.check(self.transformer)

    def _guidance(self):
        if self._pag.scale != self._guidance_scale:  # a callback changed it
            self._pag.base = make_guidance(self._guidance_scale)
        return self._pag
