"""A training run from its configuration: model, data, task, trainer, validation, result."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from PIL import Image

from ..adapters import LoraConfig
from ..models import SD3ControlNetModel
from ..pipelines import StableDiffusion3ControlNetPipeline, StableDiffusion3Pipeline
from ..training_utils import set_seed
from ..utils.errors import ConfigError
from ..utils.files import atomic_write
from ..utils.random import TorchGenerator
from .caches import LatentCache
from .configuration import TrainConfiguration
from .controlnet import ControlNetTask
from .data.batches import Augmentation, SampleBatches
from .data.buckets import Buckets
from .data.samples import PICTURE_SUFFIXES, Columns, Sample, open_samples, usable
from .text_to_image import TextToImageTask
from .texts import TOWERS, CachedTexts, TextDropout
from .timestep_sampling import Density, Indexed, timestep_density
from .trainer import Trainer, training_mode

_CLIP_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
_LORA = "default"


class TrainingRun:
    """What ``ppsd3 train`` does.

    Args:
        configuration: of the run.
        resume_from: "latest", or a state, see :class:`ppsd3.training.trainer.Trainer`.
        override: resume although settings differ.

    Raises:
        ConfigError, InputError: settings that do not go together, or data that cannot be used.
    """

    def __init__(self, configuration: TrainConfiguration, resume_from: str = "latest", override: bool = False) -> None:
        self.configuration: TrainConfiguration = configuration
        _check(configuration)
        self.pipe: Any = _load(configuration.model)
        set_seed(configuration.training.seed)  # of the first numbers of a LoRA
        self.trained_towers: list[str] = self._add_what_is_trained()
        self.batches: SampleBatches = self._open_data()
        self.texts: CachedTexts = self._read_texts()
        self.task: TextToImageTask = self._make_task()
        self.trainer: Trainer = Trainer(
            self.task,
            configuration.output,
            configuration.training,
            self.validate if configuration.validation.prompts else None,
            resume_from,
            override,
        )

    def run(self, until: int | None = None) -> str:
        """Trains, resuming what was interrupted, and writes the result; returns its path."""
        self.trainer.run(until)
        return self.save_result()

    def save_result(self) -> str:
        """Writes what was trained, with the averages if there are such, where diffusers and ppsd3 load it."""
        output, averages = self.configuration.output, self.trainer.ema
        if self.trainer.ranks.is_first:
            with contextlib.nullcontext() if averages is None else averages.applied():
                if self.configuration.method == "lora":
                    self.pipe.save_lora_weights(output)
                elif self.configuration.method == "controlnet":
                    self.controlnet.save_pretrained(os.path.join(output, "controlnet"))
                else:
                    self.pipe.transformer.save_pretrained(os.path.join(output, "transformer"))
        self.trainer.ranks.wait()
        names = {"lora": "pytorch_lora_weights.safetensors", "controlnet": "controlnet", "full": "transformer"}
        return os.path.join(output, names[self.configuration.method])

    def validate(self, step: int) -> Mapping[str, float]:
        """Draws the validation prompts into ``output/validation/step-....png``, one row."""
        options, data = self.configuration.validation, self.configuration.data
        if self.trainer.ranks.is_first:
            with paddle.no_grad(), training_mode(self.task.layers, False):
                pictures = [self._draw(prompt, options, data.resolution) for prompt in options.prompts]
            row = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))
            os.makedirs(os.path.join(self.configuration.output, "validation"), exist_ok=True)
            path = os.path.join(self.configuration.output, "validation", f"step-{step:08}.png")
            with atomic_write(path) as file:
                row.save(file, "PNG")
        return {}

    def _draw(self, prompt, options, side):
        lengths = self.batches.clip_length, self.batches.t5_length
        positive, negative = (self.texts.plain([text], *lengths) for text in (prompt, ""))
        control: dict[str, Any] = {}
        if self.configuration.method == "controlnet":
            opened = self.batches.samples[0].open_control
            control["control_image"] = None if opened is None else opened().resize((side, side))
        return self._drawing_pipe()(
            prompt_embeds=positive.embeds,
            pooled_prompt_embeds=positive.pooled,
            negative_prompt_embeds=negative.embeds,
            negative_pooled_prompt_embeds=negative.pooled,
            height=side,
            width=side,
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            generator=TorchGenerator(options.seed),
            **control,
        ).images[0]

    def _drawing_pipe(self) -> Any:
        if self.configuration.method != "controlnet":
            return self.pipe
        return StableDiffusion3ControlNetPipeline.from_pipe(self.pipe, controlnet=self.controlnet)

    def _add_what_is_trained(self) -> list[str]:
        """Freezes all, and makes what the method trains; names of the text encoders that are trained."""
        pipe, options = self.pipe, self.configuration.lora
        for network in (pipe.transformer, pipe.vae, *(getattr(pipe, name) for name in TOWERS)):
            for parameter in [] if network is None else network.parameters():
                parameter.stop_gradient = True
        towers: list[str] = []
        if self.configuration.method == "lora":
            common: dict[str, Any] = dict(
                r=options.rank,
                lora_alpha=options.rank if options.alpha is None else options.alpha,
                lora_dropout=options.dropout,
                use_dora=options.use_dora,
            )
            targets = options.targets or ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]
            pipe.transformer.add_adapter(LoraConfig(**common, target_modules=targets), _LORA)
            towers = list(TOWERS[:2]) if options.train_text_encoders else []
            for name in towers:
                getattr(pipe, name).add_adapter(LoraConfig(**common, target_modules=_CLIP_TARGETS), _LORA)
        elif self.configuration.method == "full":
            for parameter in pipe.transformer.parameters():
                parameter.stop_gradient = False
        else:
            chosen = self.configuration.controlnet
            self.controlnet: SD3ControlNetModel = (
                SD3ControlNetModel.from_pretrained(chosen.from_pretrained)
                if chosen.from_pretrained is not None
                else SD3ControlNetModel.from_transformer(
                    pipe.transformer, num_layers=chosen.num_layers or max(1, pipe.transformer.config.num_layers // 2)
                )
            )
        if self.configuration.gradient_checkpointing:
            pipe.transformer.enable_gradient_checkpointing()
            for name in towers:
                getattr(pipe, name).enable_gradient_checkpointing()
        return towers

    def _open_data(self) -> SampleBatches:
        options, pipe = self.configuration.data, self.pipe
        columns = Columns(options.caption_column, options.image_column, options.control_column)
        step = pipe.vae_scale_factor * pipe.transformer.config.patch_size
        buckets = Buckets(options.resolution, step if options.resolution % 64 else 64, options.max_aspect)
        samples = open_samples(options.path, columns, options.instance_prompt)
        samples = usable(samples, options.resolution // 2, options.skip_broken)
        return SampleBatches(
            samples,
            LatentCache(pipe.vae, self._cache("latents")),
            buckets,
            options.batch_size,
            self._priors(options),
            options.prior_weight,
            Augmentation(options.random_flip, options.random_crop),
            pipe._text_encoders().clip_max_length,
            self.configuration.text.max_sequence_length,
            self.configuration.training.seed,
        )

    def _cache(self, name):
        directory = self.configuration.data.cache_dir or os.path.join(self.configuration.output, "cache")
        return os.path.join(directory, name)

    def _priors(self, options) -> list[Sample]:
        """Pictures of the class; those that are missing are drawn first, with what is trained switched off."""
        if options.class_prompt is None:
            columns = Columns(options.caption_column, options.image_column)
            return [] if options.class_path is None else open_samples(options.class_path, columns, is_prior=True)
        folder = options.class_path or os.path.join(self.configuration.output, "class_images")
        os.makedirs(folder, exist_ok=True)
        there = sum(name.lower().endswith(PICTURE_SUFFIXES) for name in os.listdir(folder))
        for index in range(there, options.class_images):
            with paddle.no_grad(), self._without_adapters():
                picture = self.pipe(
                    options.class_prompt,
                    height=options.resolution,
                    width=options.resolution,
                    max_sequence_length=self.configuration.text.max_sequence_length,
                    generator=TorchGenerator(index),
                ).images[0]
            with atomic_write(os.path.join(folder, f"class-{index:05}.png")) as file:
                picture.save(file, "PNG")
        return open_samples(folder, instance_prompt=options.class_prompt, is_prior=True)

    @contextlib.contextmanager
    def _without_adapters(self):
        adapted = self.configuration.method == "lora"
        if adapted:
            self.pipe.disable_lora()
        try:
            yield
        finally:
            if adapted:
                self.pipe.enable_lora()

    def _read_texts(self) -> CachedTexts:
        """Encodes every caption once, and lets the text encoders that are not trained go."""
        options, pipe = self.configuration.text, self.pipe
        texts = CachedTexts(
            pipe._text_encoders(),
            TextDropout(options.encoder_dropout, options.caption_dropout),
            self._cache("texts"),
            self.trained_towers,
        )
        captions = [*self.batches.captions, *self.configuration.validation.prompts]
        texts.prepare(captions, self.batches.clip_length, self.batches.t5_length)
        for name in TOWERS:
            if name not in self.trained_towers:
                setattr(pipe, name, None)
        return texts

    def _make_task(self) -> TextToImageTask:
        flow, pipe = self.configuration.flow, self.pipe
        shift = float(pipe.scheduler.config.shift) if flow.shift is None else flow.shift
        law: Density | Indexed = timestep_density(
            flow.density, flow.logit_mean, flow.logit_std, flow.mode_scale, 1.0 if flow.indexed else shift
        )
        density = Indexed(law, shift) if isinstance(law, Density) and flow.indexed else law
        options: dict[str, Any] = dict(density=density, weight=flow.weight, stratified=flow.stratified)
        if self.configuration.method == "controlnet":
            task: TextToImageTask = ControlNetTask(
                self.controlnet, pipe.transformer, self.texts, self.batches, **options
            )
        else:
            task = TextToImageTask(pipe.transformer, self.texts, self.batches, **options)
        task.layers.update({name: getattr(pipe, name) for name in self.trained_towers})
        task.settings.update(self.batches.configuration, method=self.configuration.method)
        if self.configuration.method == "lora":
            task.settings.update(lora=repr(self.configuration.lora))
        return task


def _check(configuration):
    data, method = configuration.data, configuration.method
    if (method == "controlnet") != (data.control_column is not None):
        raise ConfigError(
            f"method is {method!r} and data.control_column is {data.control_column!r}: a ControlNet, and nothing else, "
            "needs control pictures. Name their column, or leave it out."
        )
    if configuration.validation.prompts and configuration.training.validate_every is None:
        raise ConfigError("validation.prompts are given, but training.validate_every is not: say how often.")


def _load(model):
    if os.path.isfile(model):
        return StableDiffusion3Pipeline.from_single_file(model)
    return StableDiffusion3Pipeline.from_pretrained(model)
