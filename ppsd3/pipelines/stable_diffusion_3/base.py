"""What the Stable Diffusion 3 pipelines have in common: all but their arguments and what their task adds."""

import contextlib

import paddle

from ...loaders import SD3IPAdapterMixin, SD3LoraLoaderMixin, TextualInversionLoaderMixin
from ...utils.errors import InputError
from ...utils.finite import check_finite
from ..image_processor import VaeImageProcessor, check_output_type
from ..pipeline_utils import DiffusionPipeline
from ..residency import OnDemandNetwork
from . import image_prompting, inputs
from .denoising import DenoisingState, VelocityModel, denoise, prepare_timesteps
from .guidance import make_guidance
from .latents import decode_latents
from .pipeline_output import StableDiffusion3PipelineOutput
from .prompt_cache import PromptCache
from .prompt_encoding import CLIP_MAX_LENGTH, TextCondition, TextEncoders, encode_conditions
from .prompt_reading import PromptReader
from .step_caching import StepCache


class StableDiffusion3Base(SD3LoraLoaderMixin, SD3IPAdapterMixin, TextualInversionLoaderMixin, DiffusionPipeline):
    """Base of the pipelines: a subclass's call makes a task (``tasks.py``) and hands it to :meth:`_draw`.

    Args:
        transformer (SD3Transformer2DModel), scheduler (FlowMatchEulerDiscreteScheduler), vae (AutoencoderKL).
        text_encoder, text_encoder_2 (CLIPTextModelWithProjection): CLIP-L and CLIP-G.
        text_encoder_3 (T5EncoderModel).
        tokenizer, tokenizer_2 (CLIPTokenizer), tokenizer_3 (T5Tokenizer): of the three encoders.
        image_encoder (SiglipVisionModel), feature_extractor (SiglipImageProcessor): what an IP-adapter reads pictures
            with; :meth:`load_ip_adapter` loads them too.

    Attributes:
        prompt_reader (PromptReader): makes tokens of prompts; a ``WeightedPrompts`` reads weights in them.

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
        super().__init__(
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
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor,
            vae_latent_channels=16 if vae is None else vae.config.latent_channels,
        )
        self.tokenizer_max_length = next(
            (t.model_max_length for t in (tokenizer, tokenizer_2) if t is not None), CLIP_MAX_LENGTH
        )
        self.default_sample_size = 128 if transformer is None else transformer.config.sample_size
        self.patch_size = 2 if transformer is None else transformer.config.patch_size
        self.prompt_reader = PromptReader()
        self._guidance_scale = 7.0
        self._call = self._num_timesteps = self._cache = self._prompt_cache = None
        self._interrupt = False

    @paddle.no_grad()
    def _draw(self, task, call):
        """The pictures of one call.

        Args:
            task: one of ``tasks.py``.
            call (inputs.Call): the arguments that all tasks share.

        Returns:
            StableDiffusion3PipelineOutput, or a tuple of its ``images``.
        """
        call.height = call.height or self.default_sample_size * self.vae_scale_factor
        call.width = call.width or self.default_sample_size * self.vae_scale_factor

        # 1. Check everything before any work.
        self._check(call)
        task.check(self, call)
        self._call, self._guidance_scale, self._interrupt = call, call.guidance_scale, False

        # 2. Schedule and starting latents: cheap, and they show what is wrong with a generator, latents, sigmas or mu.
        grid = call.height // self.vae_scale_factor, call.width // self.vae_scale_factor
        image_seq_len = (grid[0] // self.patch_size) * (grid[1] // self.patch_size)
        timesteps = prepare_timesteps(self.scheduler, call.num_inference_steps, call.sigmas, call.mu, image_seq_len)
        start = task.start(self, call, timesteps)
        self._num_timesteps = len(start.timesteps)

        with self.lora_scaled((call.joint_attention_kwargs or {}).get("scale"), "joint_attention_kwargs['scale']"):
            # 3. Prompts -> condition.
            guidance = self._guidance()
            guided = guidance.copies > 1
            pictures = image_prompting.read_picture(self, call, guided)
            texts = self._encode(
                call.texts, guided, call.num_images_per_prompt, call.max_sequence_length, call.clip_skip
            )
            positive, negative = (text and text.with_image(picture) for text, picture in zip(texts, pictures))

            # 4. Latents -> latents of the picture.
            state = DenoisingState(start.latents, guidance.expand(positive, negative), guidance)
            self._denoise(start, state)

        # 5. Latents -> picture.
        images = check_finite(state.latents, "transformer")
        if call.output_type != "latent":
            with self.using("vae") as vae:
                images = check_finite(decode_latents(vae, images), "vae")
            images = task.finish(self, self.image_processor.postprocess(images, call.output_type))
        return StableDiffusion3PipelineOutput(images=images) if call.return_dict else (images,)

    def _denoise(self, start, state):
        """Runs the loop over ``start.timesteps``, with progress bar, callback and interruption."""
        call = self._call
        total = len(start.timesteps)
        # the scale of LoRA layers holds for the whole call, also where text is prepared
        kwargs = {name: value for name, value in (call.joint_attention_kwargs or {}).items() if name != "scale"}
        with contextlib.ExitStack() as stack:
            transformer = stack.enter_context(self.using("transformer"))
            state.guidance.check(transformer)
            control = None
            if start.control is not None:
                controlnet = stack.enter_context(self.using("controlnet"))
                control = start.control.begin(controlnet, transformer, start.timesteps)
            progress_bar = stack.enter_context(self.progress_bar(total=total))
            velocity = VelocityModel(transformer, start.timesteps, kwargs, start.extra_channels, control)
            if self._cache is not None:
                velocity = self._cache.start(velocity)
            steps = denoise(velocity, self.scheduler, start.timesteps, state, start.after_step, call.generator)
            for step, timestep, state in steps:
                if call.callback_on_step_end is not None:
                    self._call_back(start, step, timestep, state)
                progress_bar.update()
                if self.interrupt:
                    break

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

        ``device`` may name the device that the pipeline is on; ``lora_scale`` is a factor of
        the strength of the text encoders' LoRA layers.

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
        with self.lora_scaled(lora_scale, "lora_scale"):
            positive, negative = self._encode(
                texts, do_classifier_free_guidance, num_images_per_prompt, max_sequence_length, clip_skip
            )
        negative = negative or TextCondition(None, None)
        return positive.embeds, negative.embeds, positive.pooled, negative.pooled

    @paddle.no_grad()
    def encode_image(self, image, device=None):
        """What the image encoder sees in pictures, as an IP-adapter reads it.

        Args:
            image: a PIL picture, an array [H, W, 3] or [B, H, W, 3] (uint8, or floats in [0, 1]), a list of these, or
                ``pixel_values`` (Tensor [B, 3, S, S]) that ``feature_extractor`` gave.
            device: the one that the pipeline is on, or None.

        Returns:
            Tensor [B, T, E]: T patches of width E, in the transformer's dtype.

        Raises:
            InputError: the pipeline has no image encoder, or pictures that it cannot read.
        """
        inputs.check_device(device, self.device)
        return image_prompting.encode_image(self, image)

    @paddle.no_grad()
    def prepare_ip_adapter_image_embeds(
        self,
        ip_adapter_image=None,
        ip_adapter_image_embeds=None,
        device=None,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
    ):
        """What a call takes as ``ip_adapter_image_embeds``: encoded once, used often.

        Args:
            ip_adapter_image, ip_adapter_image_embeds: one of the two, as in the call.
            device: as in :meth:`encode_image`.
            num_images_per_prompt (int): n; each row is repeated so often, in a row.
            do_classifier_free_guidance (bool): whether it is for a call with guidance.

        Returns:
            Tensor [B * n, T, E], or with guidance [2 * B * n, T, E]: [negative, positive], zeros being the negative of
            a picture.

        Raises:
            InputError: as in the call.
        """
        inputs.check_device(device, self.device)
        inputs.check_whole("num_images_per_prompt", num_images_per_prompt, least=1)
        positive, negative = image_prompting.prepare_image_embeds(
            self, ip_adapter_image, ip_adapter_image_embeds, do_classifier_free_guidance
        )
        rows = [half for half in (negative, positive) if half is not None]
        return paddle.concat([half.repeat_interleave(num_images_per_prompt, axis=0) for half in rows])

    @classmethod
    def from_pipe(cls, pipeline, **components):
        """See :meth:`DiffusionPipeline.from_pipe`; the prompt reader and the caches come along."""
        made = super().from_pipe(pipeline, **components)
        for name in ("prompt_reader", "_cache", "_prompt_cache"):  # of another kind of pipeline, they are not there
            setattr(made, name, getattr(pipeline, name, getattr(made, name)))
        return made

    def enable_cache(self, cache):
        """Answers some steps from what earlier ones computed, from the next call on: faster, nearly the same picture.

        Args:
            cache (StepCache): e.g. ``TaylorCache()``, ``FirstBlockCache()`` or ``EasyCache()`` of ``ppsd3``. Its
                ``evaluations`` and ``calls`` say after a call how often the whole transformer ran.

        Raises:
            InputError: something else.
        """
        if not isinstance(cache, StepCache):
            raise InputError(f"enable_cache takes a cache such as TaylorCache(), not a {type(cache).__name__}.")
        self._cache = cache

    def disable_cache(self):
        """Evaluates the transformer at every step again."""
        self._cache = None

    def enable_vae_tiling(self, **options):
        """Encodes and decodes pictures in tiles, so that memory does not grow with their size: 1024x1024 pixels take
        1.6 GB in place of 5.6. ``options`` are those of :meth:`AutoencoderKL.enable_tiling`."""
        self._tell("vae", "enable_tiling", **options)

    def disable_vae_tiling(self):
        """Encodes and decodes pictures whole again."""
        self._tell("vae", "disable_tiling")

    def enable_vae_slicing(self):
        """Encodes and decodes the pictures of a batch one by one."""
        self._tell("vae", "enable_slicing")

    def disable_vae_slicing(self):
        """Encodes and decodes the pictures of a batch at once again."""
        self._tell("vae", "disable_slicing")

    def enable_prompt_cache(self, cache):
        """Encodes each prompt once: conditions come from ``cache`` (:class:`~ppsd3.PromptCache`) where it has them.

        Raises:
            InputError: something else than a cache.
        """
        if not isinstance(cache, PromptCache):
            raise InputError(f"enable_prompt_cache takes a PromptCache, not a {type(cache).__name__}.")
        self._prompt_cache = cache

    def disable_prompt_cache(self):
        """Encodes every prompt again."""
        self._prompt_cache = None

    def _check(self, call):
        self._check_components()
        multiple = self.vae_scale_factor * self.patch_size
        inputs.check_size(call.height, call.width, multiple, self._largest_size())
        call.texts.check()
        inputs.check_whole("num_inference_steps", call.num_inference_steps, least=1)
        inputs.check_whole("num_images_per_prompt", call.num_images_per_prompt, least=1)
        inputs.check_sequence_length(call.max_sequence_length)
        inputs.check_clip_skip(call.clip_skip, (self.text_encoder, self.text_encoder_2))
        inputs.check_callback_tensors(call.callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        inputs.check_guidance(call, self.transformer.config.num_layers)
        image_prompting.check(self, call)
        check_output_type(call.output_type)
        if call.guidance is not None and not isinstance(self.transformer, OnDemandNetwork):
            call.guidance.check(self.transformer)

    def _check_components(self):
        for name in ("transformer", "scheduler", "vae"):
            if getattr(self, name) is None:
                raise InputError(f"The pipeline has no `{name}`, so it cannot draw. Load one and set `pipe.{name}`.")
        if self._residency.place is None:
            inputs.check_dtypes(self.components)

    def _largest_size(self):
        return self.transformer.config.pos_embed_max_size * self.patch_size * self.vae_scale_factor

    def _encode(self, texts, guided, num_images_per_prompt, max_sequence_length, clip_skip):
        return encode_conditions(
            self._text_encoders(),
            texts,
            guided,
            num_images_per_prompt,
            max_sequence_length,
            clip_skip,
            self._prompt_cache,
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
            reader=self.prompt_reader,
        )

    def _guidance(self):
        call = self._call
        if call.guidance is not None:
            return call.guidance
        return make_guidance(
            self._guidance_scale,
            call.skip_guidance_layers,
            call.skip_layer_guidance_scale,
            call.skip_layer_guidance_start,
            call.skip_layer_guidance_stop,
        )

    def _call_back(self, start, step, timestep, state):
        """Lets the user's callback see what it asked for, and replace it, and the guidance scale, in ``state``."""
        call = self._call
        tensors = {
            "latents": state.latents,
            "prompt_embeds": state.condition.embeds,
            "pooled_prompt_embeds": state.condition.pooled,
            **start.tensors,
        }
        names = call.callback_on_step_end_tensor_inputs
        changed = call.callback_on_step_end(self, step, timestep, {name: tensors[name] for name in names}) or {}
        inputs.check_callback_tensors(changed, self._callback_tensor_inputs)
        if call.guidance is not None and self._guidance_scale != call.guidance_scale:
            raise InputError("A callback set `_guidance_scale`, but this call has a `guidance`: change that object.")
        tensors.update(changed)
        state.latents = tensors["latents"]
        start.tensors.update({name: tensors[name] for name in start.tensors})
        state.guidance = self._guidance()
        embeds, pooled = tensors["prompt_embeds"], tensors["pooled_prompt_embeds"]
        # a condition that did not change stays the same object, and what is known about it with it
        if embeds is not state.condition.embeds or pooled is not state.condition.pooled:
            state.condition = state.condition.with_text(embeds, pooled)
        state.condition = state.guidance.fit(state.condition, state.latents.shape[0])

    @property
    def guidance_scale(self):
        """Weight of the guidance in the present or last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self):
        """Whether the transformer is asked about the negative prompt too."""
        return self._guidance_scale > 1 if self._call is None else self._guidance().copies > 1

    @property
    def skip_guidance_layers(self):
        """Layers of the skip-layer guidance in the present or last call, or None."""
        return self._last("skip_guidance_layers")

    @property
    def clip_skip(self):
        """``clip_skip`` of the present or last call."""
        return self._last("clip_skip")

    @property
    def joint_attention_kwargs(self):
        """``joint_attention_kwargs`` of the present or last call."""
        return self._last("joint_attention_kwargs")

    @property
    def num_timesteps(self):
        """Number of steps of the present or last call."""
        return self._num_timesteps

    @property
    def interrupt(self):
        """True stops the present call after this step; a callback sets ``pipeline._interrupt``."""
        return self._interrupt

    def _last(self, name):
        return None if self._call is None else getattr(self._call, name)
