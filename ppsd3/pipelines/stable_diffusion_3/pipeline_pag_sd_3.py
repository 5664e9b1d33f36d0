"""Text to image with perturbed-attention guidance; counterpart of diffusers' class of the same name."""

from ..residency import OnDemandNetwork
from . import inputs
from .guidance import PerturbedAttentionGuidance, make_guidance
from .pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from .tasks import TextToImage


class StableDiffusion3PAGPipeline(StableDiffusion3Pipeline):
    """``StableDiffusion3Pipeline`` whose calls take ``pag_scale``: for ``guidance=PerturbedAttentionGuidance(...)``.

    Made from another pipeline by ``from_pipe``. Every task takes the object itself.

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

    def __call__(
        self,
        prompt=None,
        prompt_2=None,
        prompt_3=None,
        height=None,
        width=None,
        num_inference_steps=28,
        sigmas=None,
        guidance_scale=7.0,
        negative_prompt=None,
        negative_prompt_2=None,
        negative_prompt_3=None,
        num_images_per_prompt=1,
        generator=None,
        latents=None,
        prompt_embeds=None,
        negative_prompt_embeds=None,
        pooled_prompt_embeds=None,
        negative_pooled_prompt_embeds=None,
        output_type="pil",
        return_dict=True,
        joint_attention_kwargs=None,
        clip_skip=None,
        callback_on_step_end=None,
        callback_on_step_end_tensor_inputs=["latents"],  # noqa: B006 (diffusers' signature; never mutated)
        max_sequence_length=256,
        pag_scale=3.0,
        pag_adaptive_scale=0.0,
        mu=None,
    ):
        """As ``StableDiffusion3Pipeline.__call__``, and:

        Args:
            pag_scale (float): weight of the perturbed-attention guidance; 0 for none. It acts without classifier-free
                guidance too.
            pag_adaptive_scale (float): weight lost for each unit of ``1000 - timestep``.

        Raises:
            InputError: as there.
        """
        self._pag = PerturbedAttentionGuidance(guidance_scale, self.pag_applied_layers, pag_scale, pag_adaptive_scale)
        return self._draw(TextToImage(), inputs.Call.of(locals())[0])

    def _check(self, call):
        super()._check(call)
        if not isinstance(self.transformer, OnDemandNetwork):
            self._pag.check(self.transformer)

    def _guidance(self):
        if self._pag.scale != self._guidance_scale:  # a callback changed it
            self._pag.base = make_guidance(self._guidance_scale)
        return self._pag
