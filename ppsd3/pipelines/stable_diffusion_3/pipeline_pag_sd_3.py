"""Text to image with perturbed-attention guidance; counterpart of diffusers' class of the same name."""

from . import inputs
from .pag_base import StableDiffusion3PAGBase
from .tasks import TextToImage


class StableDiffusion3PAGPipeline(StableDiffusion3PAGBase):
    """:class:`StableDiffusion3Pipeline` with the arguments of perturbed-attention guidance.

    Args:
        transformer, scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, text_encoder_3, tokenizer_3,
            image_encoder, feature_extractor, pag_applied_layers: as in :class:`StableDiffusion3PAGBase`.
    """

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
        ip_adapter_image=None,
        ip_adapter_image_embeds=None,
    ):
        """As ``StableDiffusion3Pipeline.__call__``, and:

        Args:
            pag_scale (float): weight of the perturbed-attention guidance; 0 for none. It acts without classifier-free
                guidance too.
            pag_adaptive_scale (float): weight lost for each unit of ``1000 - timestep``.

        Raises:
            InputError: as there.
        """
        call, own = inputs.Call.of(locals())
        self._perturb(call.guidance_scale, own.pop("pag_scale"), own.pop("pag_adaptive_scale"))
        return self._draw(TextToImage(), call)
