"""Inpainting with ControlNets of Stable Diffusion 3 that read a mask."""

from ...utils.errors import InputError
from ..image_processor import mask_processor
from . import inputs
from .control import Controlled
from .controlnet_base import StableDiffusion3ControlNetBase
from .tasks import TextToImage


class StableDiffusion3ControlNetInpaintingPipeline(StableDiffusion3ControlNetBase):
    """Draws the marked part of a picture anew, by a ControlNet trained for it; counterpart of diffusers' class
    of the same name, with the same call. It starts from noise: the ControlNet alone knows the picture.

    Args:
        transformer, scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, text_encoder_3, tokenizer_3,
            controlnet, image_encoder, feature_extractor: as in :class:`StableDiffusion3ControlNetBase`. The ControlNet
            has ``extra_conditioning_channels=1``.
    """

    @property
    def mask_processor(self):
        """VaeImageProcessor: masks of any kind -> [B, 1, H, W] of 0 and 1."""
        return mask_processor(self.vae_scale_factor)

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
        control_guidance_start=0.0,
        control_guidance_end=1.0,
        control_image=None,
        control_mask=None,
        controlnet_conditioning_scale=1.0,
        controlnet_pooled_projections=None,
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
        ip_adapter_image=None,
        ip_adapter_image_embeds=None,
        output_type="pil",
        return_dict=True,
        joint_attention_kwargs=None,
        clip_skip=None,
        callback_on_step_end=None,
        callback_on_step_end_tensor_inputs=["latents"],  # noqa: B006 (diffusers' signature; never mutated)
        max_sequence_length=256,
        mu=None,
        guidance=None,
    ):
        """Draws ``num_images_per_prompt`` pictures for each prompt, new where ``control_mask`` is white.

        Args:
            control_image: the picture: PIL picture, array or tensor in [0, 1], or one for each prompt; of several
                ControlNets a list of these.
            control_mask: of the size of the picture and any of its kinds, with one channel: white (1) is drawn, black
                (0) stays.
            controlnet_conditioning_scale (float, or list of one for each ControlNet): its weight.
            control_guidance_start, control_guidance_end (float, or list): the part of the steps at which it acts.
            controlnet_pooled_projections (Tensor [1, B or 2B, pooled_projection_dim]): pooled text for it, in
                place of the prompts'. Refused for those that were trained without.
            prompt, sigmas, guidance_scale, generator, output_type, guidance, ...: as in
                :meth:`StableDiffusion3Pipeline.__call__`.

        Returns:
            StableDiffusion3PipelineOutput, or a tuple of its ``images``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead.
        """
        call, own = inputs.Call.of(locals())
        if own["control_mask"] is None:
            raise InputError("Inpainting needs `control_image` and `control_mask`. Pass both.")
        return self._draw(Controlled(TextToImage(), **own), call)
