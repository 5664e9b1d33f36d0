"""Inpainting with Stable Diffusion 3 and 3.5."""

from ..image_processor import mask_processor
from . import inputs
from .base import StableDiffusion3Base
from .tasks import Inpainting


class StableDiffusion3InpaintPipeline(StableDiffusion3Base):
    """Draws the marked part of a picture anew; counterpart of diffusers' class of the same name, with the same call.

    Any text-to-image transformer will do (16 channels: after each step the picture outside the mask comes back), and
    so will one that was trained to read mask and masked picture too (33 channels).

    Args:
        transformer, scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, text_encoder_3, tokenizer_3,
            image_encoder, feature_extractor: as in :class:`StableDiffusion3Pipeline`, whose checkpoints it loads.
    """

    _callback_tensor_inputs = [*StableDiffusion3Base._callback_tensor_inputs, "mask", "masked_image_latents"]

    @property
    def mask_processor(self):
        """VaeImageProcessor: masks of any kind -> [B, 1, H, W] of 0 and 1."""
        return mask_processor(self.vae_scale_factor)

    def __call__(
        self,
        prompt=None,
        prompt_2=None,
        prompt_3=None,
        image=None,
        mask_image=None,
        masked_image_latents=None,
        height=None,
        width=None,
        padding_mask_crop=None,
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
        """Draws ``num_images_per_prompt`` pictures for each prompt, new where ``mask_image`` is white.

        Args:
            image: as in :meth:`StableDiffusion3Img2ImgPipeline.__call__`.
            mask_image: of the size of ``image`` and any of its kinds, with one channel: white (1) is drawn anew, black
                (0) stays. Grey is rounded.
            masked_image_latents (Tensor [B, C, H/8, W/8]): for a transformer of 33 channels, in place of ``image`` with
                the mask cut out, as the VAE encodes it (not yet scaled).
            height, width (int): pixels, multiples of 16. Default: the size that the transformer was trained for.
            padding_mask_crop (int): cuts out what the mask marks with so many pixels around it, draws that part at full
                size, and puts it back; for small details of large PIL pictures.
            strength (float): as in image to image. 1 begins with pure noise.
            latents (Tensor [B * num_images_per_prompt, C, H, W]): the noise, in place of the generator's.
            callback_on_step_end_tensor_inputs (list of str): may also name ``mask`` [B, 1, H/8, W/8] and, of a
                transformer of 33 channels, ``masked_image_latents``.
            prompt, sigmas, guidance_scale, generator, output_type, guidance, ...: as in
                :meth:`StableDiffusion3Pipeline.__call__`.

        Returns:
            StableDiffusion3PipelineOutput, or a tuple of its ``images``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead.
        """
        call, own = inputs.Call.of(locals())
        return self._draw(Inpainting(**own), call)
