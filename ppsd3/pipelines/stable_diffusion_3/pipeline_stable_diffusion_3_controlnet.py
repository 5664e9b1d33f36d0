"""Text to image with Stable Diffusion 3 and 3.5 and ControlNets."""

from . import inputs
from .control import Controlled
from .controlnet_base import StableDiffusion3ControlNetBase
from .tasks import TextToImage


class StableDiffusion3ControlNetPipeline(StableDiffusion3ControlNetBase):
    """Draws pictures from prompts and pictures that guide them: edges, depth, poses; counterpart of diffusers' class of
    the same name, with the same call.

    Args:
        transformer, scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, text_encoder_3, tokenizer_3,
            controlnet, image_encoder, feature_extractor: as in :class:`StableDiffusion3ControlNetBase`.
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
        control_guidance_start=0.0,
        control_guidance_end=1.0,
        control_image=None,
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
        """Draws ``num_images_per_prompt`` pictures for each prompt, guided by ``control_image``.

        Args:
            control_image: what guides the drawing, e.g. edges: as PIL picture, array or tensor in [0, 1]
                (or in [-1, 1] with negative values), one for all pictures, or one for each prompt; of several
                ControlNets a list of these. A tensor [b, C, H/8, W/8] with the VAE's channels counts as scaled latents.
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
        return self._draw(Controlled(TextToImage(), **own), call)
