"""Image to image with Stable Diffusion 3 and 3.5."""

from . import inputs
from .base import StableDiffusion3Base
from .tasks import ImageToImage


class StableDiffusion3Img2ImgPipeline(StableDiffusion3Base):
    """Draws a picture anew from one with noise on it (SDEdit, Meng et al., 2022).

    Counterpart of diffusers' class of the same name, with the same call.

    Args:
        transformer, scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, text_encoder_3, tokenizer_3,
            image_encoder, feature_extractor: as in :class:`StableDiffusion3Pipeline`, whose checkpoints it loads.
    """

    def __call__(
        self,
        prompt=None,
        prompt_2=None,
        prompt_3=None,
        height=None,
        width=None,
        image=None,
        strength=0.6,
        num_inference_steps=50,
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
        ip_adapter_image=None,
        ip_adapter_image_embeds=None,
        return_dict=True,
        joint_attention_kwargs=None,
        clip_skip=None,
        callback_on_step_end=None,
        callback_on_step_end_tensor_inputs=["latents"],  # noqa: B006 (diffusers' signature; never mutated)
        max_sequence_length=256,
        mu=None,
        guidance=None,
    ):
        """Draws ``num_images_per_prompt`` pictures for each prompt, from ``image``.

        Args:
            image: a PIL picture, an array [H, W, 3] or [B, H, W, 3] or a tensor [B, 3, H, W], both in [0, 1], latents
                [B, C, H/8, W/8] as the transformer knows them, or a list: one for all, or one for each prompt or each
                picture. Resized to ``height`` and ``width``.
            height, width (int): pixels, multiples of 16. Default: the size that the transformer was trained for.
            strength (float): from 0 to 1: which part of the steps is done, and so how far the result may go from
                ``image``. 1 begins with pure noise.
            num_inference_steps (int): steps of the whole schedule, of which ``strength`` is done.
            latents (Tensor [B * num_images_per_prompt, C, H, W]): to start from, in place of ``image`` and noise.
            prompt, sigmas, guidance_scale, generator, output_type, guidance, ...: as in
                :meth:`StableDiffusion3Pipeline.__call__`.

        Returns:
            StableDiffusion3PipelineOutput, or a tuple of its ``images``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead.
        """
        call, own = inputs.Call.of(locals())
        return self._draw(ImageToImage(**own), call)
