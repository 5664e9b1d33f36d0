"""What the Stable Diffusion 3 pipelines have in common: components, encoding, and how a call is run."""

from __future__ import annotations

import dataclasses
from typing import Any

import paddle

from ...loaders import SD3IPAdapterMixin, SD3LoraLoaderMixin, TextualInversionLoaderMixin
from ...models import AutoencoderKL, SD3Transformer2DModel
from ...ops.shapes import repeat_rows
from ...schedulers import FlowMatchEulerDiscreteScheduler
from ...transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    SiglipImageProcessor,
    SiglipVisionModel,
    T5EncoderModel,
    T5Tokenizer,
)
from ...utils.checking import checks_arguments
from ...utils.errors import InputError
from ...utils.paddle_internals import no_grad
from ...utils.threads import works_with_networks
from ..call_signature import Pictures, Texts
from ..image_processor import VaeImageProcessor
from ..pipeline_utils import DiffusionPipeline
from . import checks, image_prompting
from .arguments import CallArguments, ClipSkip, Copies, Pixels, SequenceLength, SkipLayers, Tensor
from .cfg_parallel import CFGParallel
from .guidance import Guidance, make_guidance
from .present_call import PresentCall
from .prompt_cache import PromptCache
from .prompt_encoding import CLIP_MAX_LENGTH, TextCondition, TextEncoders, encode_conditions
from .prompt_inputs import PromptInputs
from .prompt_reading import PromptReader
from .step_caching import StepCache
from .tower_encoding import TowerEncoding


@dataclasses.dataclass(eq=False, repr=False)
class Components:
    """What every pipeline is made of; the fields are arguments of its constructor, in diffusers' order.

    Any text encoder may be None (with its tokenizer): zeros take its place, as in training. Without T5 a published
    model needs 9 GB (fp16) less and loses mostly spelled-out text and long descriptions.
    """

    transformer: SD3Transformer2DModel
    scheduler: FlowMatchEulerDiscreteScheduler  # or another of ppsd3.schedulers
    vae: AutoencoderKL
    text_encoder: CLIPTextModelWithProjection | None  # CLIP-L
    tokenizer: CLIPTokenizer | None
    text_encoder_2: CLIPTextModelWithProjection | None  # CLIP-G
    tokenizer_2: CLIPTokenizer | None
    text_encoder_3: T5EncoderModel | None
    tokenizer_3: T5Tokenizer | None


@dataclasses.dataclass(eq=False, repr=False)
class ImageEncoderComponents:
    """What an IP-adapter reads pictures with; :meth:`load_ip_adapter` loads them too."""

    image_encoder: SiglipVisionModel | None = None
    feature_extractor: SiglipImageProcessor | None = None


class StableDiffusion3Base(
    Components,
    PresentCall,
    TowerEncoding,
    SD3LoraLoaderMixin,
    SD3IPAdapterMixin,
    TextualInversionLoaderMixin,
    DiffusionPipeline,
):
    """Base of the pipelines: a subclass is a dataclass over this and its further components, and its call makes a task
    (``tasks.py``) and hands it to ``_draw``.

    Attributes:
        prompt_reader: makes tokens of prompts; a ``WeightedPrompts`` reads weights in them.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->image_encoder->transformer->vae"
    _optional_components = ("image_encoder", "feature_extractor")
    _carried = ("prompt_reader", "_cache", "_prompt_cache")
    _callback_tensor_inputs = [
        "latents",
        "prompt_embeds",
        "pooled_prompt_embeds",
        "negative_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ]
    image_encoder: SiglipVisionModel | None
    feature_extractor: SiglipImageProcessor | None

    def __post_init__(self) -> None:
        self._calls = {}
        names = [field.name for field in dataclasses.fields(self) if field.name not in self._settings]
        DiffusionPipeline.__init__(self, **{name: getattr(self, name) for name in names})
        vae, transformer = self.vae, self.transformer
        self.vae_scale_factor: int = 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor,
            vae_latent_channels=self.latent_channels,
        )
        self.tokenizer_max_length: int = next(
            (t.model_max_length for t in (self.tokenizer, self.tokenizer_2) if t and t.model_max_length),
            CLIP_MAX_LENGTH,
        )
        self.default_sample_size: int = 128 if transformer is None else transformer.config.sample_size
        self.patch_size: int = 2 if transformer is None else transformer.config.patch_size
        self.prompt_reader = PromptReader()
        self._cache: StepCache | CFGParallel | None = None
        self._prompt_cache: PromptCache | None = None

    @property
    def latent_channels(self) -> int:
        """Channels of latents: the VAE's; without one the transformer's, or SD3's 16."""
        if self.vae is not None:
            return self.vae.config.latent_channels
        return 16 if self.transformer is None else self.transformer.config.out_channels

    def _guidance_for(self, arguments: CallArguments, scale: float) -> Guidance:
        """The guidance of a call with these arguments, at ``scale`` in place of their ``guidance_scale``."""
        guidance = getattr(arguments, "guidance", None)
        if guidance is not None:
            return guidance
        if not isinstance(arguments, SkipLayers):
            return make_guidance(scale)
        start, stop = arguments.skip_layer_guidance_start, arguments.skip_layer_guidance_stop
        return make_guidance(scale, arguments.skip_guidance_layers, arguments.skip_layer_guidance_scale, start, stop)

    @works_with_networks
    @no_grad
    @checks_arguments
    def encode_prompt(
        self,
        prompt: Texts,
        prompt_2: Texts,
        prompt_3: Texts,
        device: Any = None,
        num_images_per_prompt: Copies = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: Texts = None,
        negative_prompt_2: Texts = None,
        negative_prompt_3: Texts = None,
        prompt_embeds: Tensor = None,
        negative_prompt_embeds: Tensor = None,
        pooled_prompt_embeds: Tensor = None,
        negative_pooled_prompt_embeds: Tensor = None,
        clip_skip: ClipSkip = None,
        max_sequence_length: SequenceLength = 256,
        lora_scale: float | None = None,
    ) -> tuple[paddle.Tensor, Tensor, paddle.Tensor, Tensor]:
        """Encodes prompts without drawing; the arguments are those of the call.

        ``device`` may name the device that the pipeline is on; ``lora_scale`` is a factor of
        the strength of the text encoders' LoRA layers.

        Returns:
            ``(prompt_embeds [B * n, L, D], negative_prompt_embeds, pooled_prompt_embeds [B * n, P],
            negative_pooled_prompt_embeds)``; the negative ones are None without ``do_classifier_free_guidance``.

        Raises:
            InputError: as in the call.
        """
        prompts = PromptInputs(
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
        ).check(self)
        checks.check_clip_skip(clip_skip, (self.text_encoder, self.text_encoder_2))
        checks.check_device(device, self.device)
        with self.lora_scaled(lora_scale, "lora_scale"):
            positive, negative = self._encode_texts(
                prompts, do_classifier_free_guidance, num_images_per_prompt, max_sequence_length, clip_skip
            )
        if negative is None:
            return positive.embeds, None, positive.pooled, None
        return positive.embeds, negative.embeds, positive.pooled, negative.pooled

    @works_with_networks
    @no_grad
    @checks_arguments
    def encode_image(self, image: Pictures, device: Any = None) -> paddle.Tensor:
        """What the image encoder sees in pictures, as an IP-adapter reads it.

        Args:
            image: PIL pictures or arrays [H, W, 3] or [B, H, W, 3], one or a list (values: :mod:`ppsd3.utils.images`),
                or ``pixel_values`` (Tensor [B, 3, S, S]) that ``feature_extractor`` gave.
            device: the one that the pipeline is on, or None.

        Returns:
            [B, T, E]: T patches of width E, in the transformer's dtype.

        Raises:
            InputError: the pipeline has no image encoder, or pictures that it cannot read.
        """
        checks.check_device(device, self.device)
        return image_prompting.encode_image(self, image)

    @works_with_networks
    @no_grad
    @checks_arguments
    def prepare_ip_adapter_image_embeds(
        self,
        ip_adapter_image: Pictures = None,
        ip_adapter_image_embeds: paddle.Tensor | list[paddle.Tensor] | None = None,
        device: Any = None,
        num_images_per_prompt: Copies = 1,
        do_classifier_free_guidance: bool = True,
    ) -> paddle.Tensor:
        """What a call takes as ``ip_adapter_image_embeds``: encoded once, used often.

        Args:
            ip_adapter_image, ip_adapter_image_embeds: one of the two, as in the call.
            device: as in :meth:`encode_image`.
            num_images_per_prompt: n; each row is repeated so often, in a row.
            do_classifier_free_guidance: whether it is for a call with guidance.

        Returns:
            [B * n, T, E], or with guidance [2 * B * n, T, E]: [negative, positive], zeros being the negative of
            a picture.

        Raises:
            InputError: as in the call.
        """
        checks.check_device(device, self.device)
        positive, negative = image_prompting.prepare_image_embeds(
            self, ip_adapter_image, ip_adapter_image_embeds, do_classifier_free_guidance
        )
        rows = [half for half in (negative, positive) if half is not None]
        return paddle.concat([repeat_rows(half, num_images_per_prompt) for half in rows])

    @checks_arguments
    def enable_cache(self, cache: StepCache) -> None:
        """Answers some steps from what earlier ones computed, from the next call on: faster, nearly the same picture.

        Args:
            cache: e.g. ``TaylorCache()``, ``FirstBlockCache()`` or ``EasyCache()`` of ``ppsd3``. Its
                ``evaluations`` and ``calls`` say after a call how often the whole transformer ran.

        Raises:
            InputError: something else.
        """
        self._cache = CFGParallel(cache) if isinstance(self._cache, CFGParallel) else cache

    def disable_cache(self) -> None:
        """Evaluates the transformer at every step again."""
        self._cache = CFGParallel() if isinstance(self._cache, CFGParallel) else None

    def enable_cfg_parallel(self) -> None:
        """Divides guidance between two processes, from the next call on: one asks the transformer about the negative
        prompt, the other about the positive one ("CFG parallel" in xDiT, "batch parallel" in PaddleMIX).

        Both, started by ``python -m paddle.distributed.launch --nproc_per_node 2``, make the same calls with the same
        seeds, and get the picture that one process draws, with as many CPU threads to the bit. What is asked about one
        prompt alone (no guidance, skip-layer or perturbed-attention guidance) both work out.

        Raises:
            InputError: there are not two processes; while drawing, there is a ``FirstBlockCache``.
            RankLostError: the other process has ended.
        """
        if not isinstance(self._cache, CFGParallel):
            self._cache = CFGParallel(self._cache)

    def disable_cfg_parallel(self) -> None:
        """Lets this process draw alone again."""
        if isinstance(self._cache, CFGParallel):
            self._cache = self._cache.cache

    def enable_vae_tiling(self, **options: Any) -> None:
        """Encodes and decodes pictures in tiles, so that memory does not grow with their size: 1024x1024 pixels take
        1.6 GB in place of 5.6. ``options`` are those of :meth:`AutoencoderKL.enable_tiling`."""
        self._tell("vae", "enable_tiling", **options)

    def disable_vae_tiling(self) -> None:
        """Encodes and decodes pictures whole again."""
        self._tell("vae", "disable_tiling")

    def enable_vae_slicing(self) -> None:
        """Encodes and decodes the pictures of a batch one by one."""
        self._tell("vae", "enable_slicing")

    def disable_vae_slicing(self) -> None:
        """Encodes and decodes the pictures of a batch at once again."""
        self._tell("vae", "disable_slicing")

    @checks_arguments
    def enable_prompt_cache(self, cache: PromptCache) -> None:
        """Encodes each prompt once: conditions come from ``cache`` (:class:`~ppsd3.PromptCache`) where it has them.

        Raises:
            InputError: something else than a cache.
        """
        self._prompt_cache = cache

    def disable_prompt_cache(self) -> None:
        """Encodes every prompt again."""
        self._prompt_cache = None

    @checks_arguments
    def check_inputs(
        self,
        prompt: Texts = None,
        prompt_2: Texts = None,
        prompt_3: Texts = None,
        height: Pixels = None,
        width: Pixels = None,
        negative_prompt: Texts = None,
        negative_prompt_2: Texts = None,
        negative_prompt_3: Texts = None,
        prompt_embeds: Tensor = None,
        negative_prompt_embeds: Tensor = None,
        pooled_prompt_embeds: Tensor = None,
        negative_pooled_prompt_embeds: Tensor = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        max_sequence_length: SequenceLength = 256,
    ) -> None:
        """Refuses what a call would refuse of these arguments; the call does it by itself.

        Raises:
            InputError: as in the call.
        """
        size, multiple = self.default_sample_size * self.vae_scale_factor, self.vae_scale_factor * self.patch_size
        self._check_components("transformer")
        largest = self.transformer.config.pos_embed_max_size * multiple
        checks.check_size(height or size, width or size, multiple, largest)
        PromptInputs(
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
        ).check(self)
        checks.check_callback_tensors(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)

    def _check_components(self, *names: str) -> None:
        """Raises an InputError if one of these components is missing, or any has a dtype that cannot compute."""
        for name in names:
            self.require(name)
        if self._residency.place is None:
            checks.check_dtypes(self.components)

    def _encode_texts(
        self,
        prompts: PromptInputs,
        guided: bool,
        num_images_per_prompt: int,
        max_sequence_length: int,
        clip_skip: int | None,
    ) -> tuple[TextCondition, TextCondition | None]:
        """The conditions of a call's prompts, see ``prompt_encoding.encode_conditions``."""
        encoders, cache = self._text_encoders(), self._prompt_cache
        return encode_conditions(
            encoders, prompts, guided, num_images_per_prompt, max_sequence_length, clip_skip, cache
        )

    def _text_encoders(self):
        """The towers, with the widths and the dtype of what the transformer reads."""
        parts = {name: part for name, part in self.components.items() if name.startswith(("text_enc", "tokenizer"))}
        return TextEncoders(
            **parts,
            **self._text_widths(),
            clip_max_length=self.tokenizer_max_length,
            using=self.using,
            reader=self.prompt_reader,
        )

    def _text_widths(self):
        if self.transformer is None:
            return self._widths_of_encoders()
        widths = ("joint_attention_dim", "pooled_projection_dim")
        return {"dtype": self.transformer.dtype, **{name: self.transformer.config[name] for name in widths}}

    def _widths_of_encoders(self):
        """What the transformer would read: without it all text encoders have to be there."""
        encoders = {name: self.components[name] for name in ("text_encoder", "text_encoder_2", "text_encoder_3")}
        missing = [name for name, encoder in encoders.items() if encoder is None]
        if missing:
            raise InputError(
                f"The pipeline has neither `transformer` nor `{missing[0]}`, so the width of the zeros in its place is "
                "not known. Load one of the two."
            )
        *clip, t5 = encoders.values()
        pooled = sum(encoder.config.projection_dim for encoder in clip)
        return {"joint_attention_dim": t5.config.d_model, "pooled_projection_dim": pooled, "dtype": clip[0].dtype}
