"""Text to image with Stable Diffusion 3 and 3.5."""

import paddle

from ...utils.errors import InputError
from ..image_processor import VaeImageProcessor, check_output_type
from ..pipeline_utils import DiffusionPipeline
from . import inputs
from .denoising import DenoisingState, VelocityModel, denoise, prepare_timesteps
from .guidance import make_guidance
from .latents import decode_latents, prepare_latents
from .pipeline_output import StableDiffusion3PipelineOutput
from .prompt_encoding import CLIP_MAX_LENGTH, TextCondition, TextEncoders, encode_conditions


class StableDiffusion3Pipeline(DiffusionPipeline):
    """Draws pictures from prompts with the MM-DiT of "Scaling Rectified Flow Transformers for High-Resolution Image
    Synthesis" (Esser et al., 2024); counterpart of diffusers' class of the same name, with the same call.

    Args:
        transformer (SD3Transformer2DModel), scheduler (FlowMatchEulerDiscreteScheduler), vae (AutoencoderKL).
        text_encoder, text_encoder_2 (CLIPTextModelWithProjection): CLIP-L and CLIP-G.
        text_encoder_3 (T5EncoderModel).
        tokenizer, tokenizer_2 (CLIPTokenizer), tokenizer_3 (T5Tokenizer): of the three encoders.
        image_encoder, feature_extractor: None; places that a diffusers checkpoint has for an IP-adapter.

    Any text encoder may be None (with its tokenizer): zeros take its place, as in training. Without T5 a published
    model needs 9 GB (fp16) less and loses mostly spelled-out text and long descriptions.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->image_encoder->transformer->vae"
    _optional_components = ("image_encoder", "feature_extractor")
    _callback_tensor_inputs = ["latents", "prompt_embeds", "pooled_prompt_embeds"]

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
    ):
        inputs.check_ip_adapter(image_encoder=image_encoder, feature_extractor=feature_extractor)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            text_encoder_3=text_encoder_3,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            tokenizer_3=tokenizer_3,
            transformer=transformer,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        self.vae_scale_factor = 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.tokenizer_max_length = next(
            (t.model_max_length for t in (tokenizer, tokenizer_2) if t is not None), CLIP_MAX_LENGTH
        )
        self.default_sample_size = 128 if transformer is None else transformer.config.sample_size
        self.patch_size = 2 if transformer is None else transformer.config.patch_size
        self._guidance_scale = 7.0
        self._skip_guidance_layers = self._clip_skip = self._joint_attention_kwargs = self._num_timesteps = None
        self._interrupt = False

    @paddle.no_grad()
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
            ip_adapter_image, ip_adapter_image_embeds: must be None.
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

        Returns:
            StableDiffusion3PipelineOutput, or a tuple of its ``images``.

        Raises:
            InputError: an argument cannot be used; the message says what to pass instead. All are checked first.
        """
        height = height or self.default_sample_size * self.vae_scale_factor
        width = width or self.default_sample_size * self.vae_scale_factor
        texts = inputs.PromptInputs(
            prompt,
            prompt_2,
            prompt_3,
            negative_prompt,
            negative_prompt_2,
            negative_prompt_3,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
        )

        # 1. Check everything before any work.
        self._check_components()
        inputs.check_size(height, width, self.vae_scale_factor * self.patch_size, self._largest_size())
        texts.check()
        inputs.check_whole("num_inference_steps", num_inference_steps, least=1)
        inputs.check_whole("num_images_per_prompt", num_images_per_prompt, least=1)
        inputs.check_sequence_length(max_sequence_length)
        inputs.check_clip_skip(clip_skip, (self.text_encoder, self.text_encoder_2))
        inputs.check_callback_tensors(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        inputs.check_skip_layers(skip_guidance_layers, self.transformer.config.num_layers, guidance_scale > 1)
        inputs.check_ip_adapter(ip_adapter_image=ip_adapter_image, ip_adapter_image_embeds=ip_adapter_image_embeds)
        check_output_type(output_type)

        self._guidance_scale, self._skip_guidance_layers = guidance_scale, skip_guidance_layers
        self._skip_layer_guidance = skip_layer_guidance_scale, skip_layer_guidance_start, skip_layer_guidance_stop
        self._clip_skip, self._joint_attention_kwargs, self._interrupt = clip_skip, joint_attention_kwargs, False

        # 2. Noise and schedule: cheap, and they show what is wrong with a generator, latents, sigmas or mu.
        channels = self.transformer.config.in_channels
        grid = height // self.vae_scale_factor, width // self.vae_scale_factor
        shape = [texts.batch * num_images_per_prompt, channels, *grid]
        latents = prepare_latents(shape, self.transformer.dtype, generator, latents)
        image_seq_len = (grid[0] // self.patch_size) * (grid[1] // self.patch_size)
        timesteps = prepare_timesteps(self.scheduler, num_inference_steps, sigmas, mu, image_seq_len)
        self._num_timesteps = len(timesteps)

        # 3. Prompts -> condition.
        guidance = self._guidance()
        positive, negative = self._encode(
            texts, self.do_classifier_free_guidance, num_images_per_prompt, max_sequence_length, clip_skip
        )

        # 4. Noise -> latents of the picture.
        state = DenoisingState(latents, guidance.expand(positive, negative), guidance)
        with self.using("transformer") as transformer, self.progress_bar(total=len(timesteps)) as progress_bar:
            velocity = VelocityModel(transformer, timesteps, joint_attention_kwargs)
            for step, timestep, state in denoise(velocity, self.scheduler, timesteps, state):
                if callback_on_step_end is not None:
                    self._call_back(callback_on_step_end, callback_on_step_end_tensor_inputs, step, timestep, state)
                progress_bar.update()
                if self.interrupt:
                    break

        # 5. Latents -> picture.
        images = state.latents
        if output_type != "latent":
            with self.using("vae") as vae:
                images = decode_latents(vae, images)
            images = self.image_processor.postprocess(images, output_type)
        return StableDiffusion3PipelineOutput(images=images) if return_dict else (images,)

    @paddle.no_grad()
    def encode_prompt(
        self,
        prompt,
        prompt_2,
        prompt_3,
        device=None,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=None,
        negative_prompt_2=None,
        negative_prompt_3=None,
        prompt_embeds=None,
        negative_prompt_embeds=None,
        pooled_prompt_embeds=None,
        negative_pooled_prompt_embeds=None,
        clip_skip=None,
        max_sequence_length=256,
        lora_scale=None,
    ):
        """Encodes prompts without drawing; the arguments are those of the call.

        ``device`` may name the device that the pipeline is on; ``lora_scale`` must be None or 1.

        Returns:
            ``(prompt_embeds [B * n, L, D], negative_prompt_embeds, pooled_prompt_embeds [B * n, P],
            negative_pooled_prompt_embeds)``; the negative ones are None without ``do_classifier_free_guidance``.

        Raises:
            InputError: as in the call.
        """
        texts = inputs.PromptInputs(
            prompt,
            prompt_2,
            prompt_3,
            negative_prompt,
            negative_prompt_2,
            negative_prompt_3,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
        )
        texts.check()
        inputs.check_whole("num_images_per_prompt", num_images_per_prompt, least=1)
        inputs.check_sequence_length(max_sequence_length)
        inputs.check_clip_skip(clip_skip, (self.text_encoder, self.text_encoder_2))
        inputs.check_device(device, self.device)
        inputs.check_lora_scale(lora_scale)
        positive, negative = self._encode(
            texts, do_classifier_free_guidance, num_images_per_prompt, max_sequence_length, clip_skip
        )
        negative = negative or TextCondition(None, None)
        return positive.embeds, negative.embeds, positive.pooled, negative.pooled

    def prepare_latents(
        self, batch_size, num_channels_latents, height, width, dtype, device=None, generator=None, latents=None
    ):
        """Noise [batch_size, num_channels_latents, height / 8, width / 8] (sizes in pixels), or ``latents`` checked."""
        inputs.check_device(device, self.device)
        grid = height // self.vae_scale_factor, width // self.vae_scale_factor
        return prepare_latents([batch_size, num_channels_latents, *grid], dtype, generator, latents)

    def _check_components(self):
        for name in ("transformer", "scheduler", "vae"):
            if getattr(self, name) is None:
                raise InputError(f"The pipeline has no `{name}`, so it cannot draw. Load one and set `pipe.{name}`.")
        inputs.check_dtypes(self.components)

    def _largest_size(self):
        return self.transformer.config.pos_embed_max_size * self.patch_size * self.vae_scale_factor

    def _encode(self, texts, guided, num_images_per_prompt, max_sequence_length, clip_skip):
        return encode_conditions(
            self._text_encoders(), texts, guided, num_images_per_prompt, max_sequence_length, clip_skip
        )

    def _text_encoders(self):
        """The towers, with the widths and the dtype of what the transformer reads."""
        parts = {name: part for name, part in self.components.items() if name.startswith(("text_enc", "tokenizer"))}
        if self.transformer is None:
            raise InputError(
                "Encoding needs the transformer's widths, and the pipeline has no `transformer`. Load it too."
            )
        config = self.transformer.config
        return TextEncoders(
            **parts,
            joint_attention_dim=config.joint_attention_dim,
            pooled_projection_dim=config.pooled_projection_dim,
            dtype=self.transformer.dtype,
            clip_max_length=self.tokenizer_max_length,
            using=self.using,
        )

    def _guidance(self):
        return make_guidance(self._guidance_scale, self._skip_guidance_layers, *self._skip_layer_guidance)

    def _call_back(self, callback, names, step, timestep, state):
        """Lets the user's callback see ``names`` and replace them, and the guidance scale, in ``state``."""
        tensors = {
            "latents": state.latents,
            "prompt_embeds": state.condition.embeds,
            "pooled_prompt_embeds": state.condition.pooled,
        }
        changed = callback(self, step, timestep, {name: tensors[name] for name in names}) or {}
        inputs.check_callback_tensors(changed, self._callback_tensor_inputs)
        tensors.update(changed)
        state.latents = tensors["latents"]
        state.guidance = self._guidance()
        condition = TextCondition(tensors["prompt_embeds"], tensors["pooled_prompt_embeds"])
        state.condition = state.guidance.fit(condition, state.latents.shape[0])

    @property
    def guidance_scale(self):
        """Weight of the guidance in the present or last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self):
        """Whether the transformer is asked about the negative prompt too."""
        return self._guidance_scale > 1

    @property
    def skip_guidance_layers(self):
        """Layers of the skip-layer guidance in the present or last call, or None."""
        return self._skip_guidance_layers

    @property
    def clip_skip(self):
        """``clip_skip`` of the present or last call."""
        return self._clip_skip

    @property
    def joint_attention_kwargs(self):
        """``joint_attention_kwargs`` of the present or last call."""
        return self._joint_attention_kwargs

    @property
    def num_timesteps(self):
        """Number of steps of the present or last call."""
        return self._num_timesteps

    @property
    def interrupt(self):
        """True stops the present call after this step; a callback sets ``pipeline._interrupt``."""
        return self._interrupt
