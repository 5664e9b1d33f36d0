"""Text to image with Stable Diffusion 3 and 3.5."""

from . import inputs
from .base import StableDiffusion3Base
from .latents import prepare_latents
from .tasks import TextToImage


class StableDiffusion3Pipeline(StableDiffusion3Base):
    """Draws pictures from prompts with the MM-DiT of "Scaling Rectified Flow Transformers for High-Resolution Image
    Synthesis" (Esser et al., 2024); counterpart of diffusers' class of the same name, with the same call.

    Args:
        transformer (SD3Transformer2DModel), scheduler (FlowMatchEulerDiscreteScheduler), vae (AutoencoderKL).
        text_encoder, text_encoder_2 (CLIPTextModelWithProjection): CLIP-L and CLIP-G.
        text_encoder_3 (T5EncoderModel).
        tokenizer, tokenizer_2 (CLIPTokenizer), tokenizer_3 (T5Tokenizer): of the three encoders.
        image_encoder (SiglipVisionModel), feature_extractor (SiglipImageProcessor): what an IP-adapter reads pictures
            with; :meth:`load_ip_adapter` loads them too.

    Any text encoder may be None (with its tokenizer): zeros take its place, as in training. Without T5 a published
    model needs 9 GB (fp16) less and loses mostly spelled-out text and long descriptions.
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
        ip_adapter_image=None,
        ip_adapter_image_embeds=None,
        output_type="pil",
        return_dict=True,
        joint_attention_kwargs=None,
        clip_skip=None,
        callback_on_step_end=None,
        callback_on_step_end_tensor_inputs=["latents"],  # noqa: B006 (diffusers' signature; never mutated)
        max_sequence_length=256,
        skip_guidance_layers=None,
        skip_layer_guidance_scale=2.8,
        skip_layer_guidance_stop=0.2,
        skip_layer_guidance_start=0.01,
        mu=None,
        guidance=None,
    ):
        """Draws ``num_images_per_prompt`` pictures for each prompt.

        Args:
            prompt (str or list of B str): what to draw; for CLIP-L, and for the others unless they have their own.
            prompt_2, prompt_3 (str or list of str): for CLIP-G and T5. Default: ``prompt``.
            height, width (int): pixels, multiples of ``vae_scale_factor * patch_size`` (16). Default: the size that the
                transformer was trained for.
            num_inference_steps (int): n. More steps follow the flow more exactly and take longer.
            sigmas (list of float): noise levels of the steps, before the scheduler's shift; their number replaces n.
            guidance_scale (float): how far to move from the negative prompt's picture. 1 or less: no guidance, half
                the work.
            negative_prompt, negative_prompt_2, negative_prompt_3 (str or list of str): what to move away from.
                Default: ``""``. Without guidance they have no effect.
            num_images_per_prompt (int): pictures per prompt, next to one another in the result.
            generator: where the noise comes from: a ``TorchGenerator`` (the noise of diffusers on the CPU), a
                ``paddle.Generator``, a list with one for each picture, or None for Paddle's global one.
            latents (Tensor [B * num_images_per_prompt, C, H, W]): noise to start from, instead of the generator's.
            prompt_embeds [B, L, D], pooled_prompt_embeds [B, P], negative_prompt_embeds,
                negative_pooled_prompt_embeds (Tensor): what ``encode_prompt`` returns, instead of texts.
            ip_adapter_image: a picture as a prompt, for an IP-adapter (:meth:`load_ip_adapter`): what
                :meth:`encode_image` takes, one for all, or one for each prompt or each picture drawn.
            ip_adapter_image_embeds (Tensor): what :meth:`prepare_ip_adapter_image_embeds` returns, instead of it:
                [b, T, E], with guidance [2 * b, T, E] in the order [negative, positive].
            output_type (str): ``"pil"``, ``"np"``, ``"pt"`` (or ``"pd"``) or ``"latent"``, see
                ``VaeImageProcessor.postprocess``.
            return_dict (bool): return a ``StableDiffusion3PipelineOutput``, or else a tuple of one.
            joint_attention_kwargs (dict): handed to the transformer for its attention processors.
            clip_skip (int): how many more of CLIP's last layers to leave out, for the positive prompts.
            callback_on_step_end (callable): ``(pipeline, step, timestep, tensors) -> dict`` after each step; what the
                dict holds replaces the tensor of that name. May set ``pipeline._interrupt = True`` to stop and
                ``pipeline._guidance_scale`` to another scale.
            callback_on_step_end_tensor_inputs (list of str): which of ``latents``, ``prompt_embeds`` and
                ``pooled_prompt_embeds`` are in ``tensors``. With guidance the latter two are [negative, positive].
            max_sequence_length (int): tokens that T5 gets, up to 512.
            skip_guidance_layers (list of int): layers for skip-layer guidance, see ``guidance.SkipLayerGuidance``.
            skip_layer_guidance_scale, skip_layer_guidance_stop, skip_layer_guidance_start (float): its weight, and
                the part of the steps in which it acts.
            mu (float): shift for a scheduler with ``use_dynamic_shifting``. Default: from the picture's size.
            guidance (object): one of ``guidance.py``, in place of what ``guidance_scale`` and ``skip_guidance_layers``
                would make.

        Returns:
            StableDiffusion3PipelineOutput, or a tuple of its ``images``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead. All are checked first.
        """
        return self._draw(TextToImage(), inputs.Call.of(locals())[0])

    def prepare_latents(
        self, batch_size, num_channels_latents, height, width, dtype, device=None, generator=None, latents=None
    ):
        """Noise [batch_size, num_channels_latents, height / 8, width / 8] (sizes in pixels), or ``latents`` checked."""
        inputs.check_device(device, self.device)
        grid = height // self.vae_scale_factor, width // self.vae_scale_factor
        return prepare_latents([batch_size, num_channels_latents, *grid], dtype, generator, latents)
