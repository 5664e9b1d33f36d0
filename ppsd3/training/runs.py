"""A training run from its configuration: model, data, method, trainer, validation, result."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from PIL import Image

from ..layerwise_casting import STORAGE_DTYPES
from ..pipelines import StableDiffusion3Pipeline
from ..training_utils import set_seed
from ..utils.errors import ConfigError
from ..utils.files import atomic_write
from ..utils.random import TorchGenerator
from ..utils.ranks import current_ranks
from .caches import LatentCache
from .configuration import TrainConfiguration
from .data.batches import Augmentation, SampleBatches
from .data.buckets import Buckets
from .data.samples import PICTURE_SUFFIXES, Columns, Sample, open_samples, usable
from .methods import METHODS, Method
from .shifts import SizeShift, set_shift
from .texts import TOWERS, CachedTexts, TextDropout
from .trainer import Task, Trainer, training_mode


class TrainingRun:
    """What ``ppsd3 train`` does.

    Args:
        configuration: of the run.
        resume_from: "latest", or a state, see :class:`ppsd3.training.trainer.Trainer`.
        override: resume although settings differ.

    Attributes:
        method: what is trained; see :mod:`ppsd3.training.methods`.

    Raises:
        ConfigError, InputError: settings that do not go together, or data that cannot be used.
    """

    def __init__(self, configuration: TrainConfiguration, resume_from: str = "latest", override: bool = False) -> None:
        self.configuration: TrainConfiguration = configuration
        _check(configuration)
        current_ranks()  # from here on, one that ends is noticed
        self.pipe: Any = _load(configuration)
        if not sys.stderr.isatty():
            self.pipe.set_progress_bar_config(disable=True)  # of pictures that are drawn meanwhile
        flow = configuration.flow
        self.size_shift: SizeShift | None = set_shift(
            self.pipe, flow.shift, flow.shift_by_size, configuration.data.resolution
        )
        set_seed(configuration.training.seed)  # of the first numbers of a LoRA
        for network in (self.pipe.transformer, self.pipe.vae, *(getattr(self.pipe, name) for name in TOWERS)):
            for parameter in [] if network is None else network.parameters():
                parameter.stop_gradient = True
        self.method: Method = METHODS[configuration.method](configuration, self.pipe)
        if configuration.gradient_checkpointing:
            self.method.checkpoint_gradients()
        self.task: Task = self.method.make_task(self)
        self.trainer: Trainer = Trainer(
            self.task,
            configuration.output,
            configuration.training,
            self.validate if self.method.validates else None,
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
                self.method.save(output)
        self.trainer.ranks.wait()
        return os.path.join(output, self.method.result)

    def validate(self, step: int) -> Mapping[str, float]:
        """Draws the method's validation pictures into ``output/validation/step-....png``, one row."""
        if not self.trainer.ranks.is_first:
            return {}
        with paddle.no_grad(), training_mode(self.task.layers, False):
            pictures, numbers = self.method.validation(self)
        row = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))
        os.makedirs(os.path.join(self.configuration.output, "validation"), exist_ok=True)
        path = os.path.join(self.configuration.output, "validation", f"step-{step:08}.png")
        with atomic_write(path) as file:
            row.save(file, "PNG")
        return numbers

    # What a method does not ask for is not read.

    @property
    def settings(self) -> dict[str, Any]:
        """What a resumed run must share beside a task's own, as JSON values."""
        chosen = self.configuration
        return {"method": chosen.method, "weights": chosen.weights, **self.method.settings}

    @functools.cached_property
    def buckets(self) -> Buckets:
        """The sizes of pictures."""
        options, transformer = self.configuration.data, self.pipe.transformer
        step = self.pipe.vae_scale_factor * transformer.config.patch_size
        return Buckets(options.resolution, step if options.resolution % 64 else 64, options.max_aspect)

    @functools.cached_property
    def augmentation(self) -> Augmentation:
        """How pictures vary."""
        return Augmentation(self.configuration.data.random_flip, self.configuration.data.random_crop)

    def open_samples(self, prompt: str | None) -> list[Sample]:
        """The pictures that are trained on, with their captions, or all with the caption ``prompt``."""
        options = self.configuration.data
        columns = Columns(options.caption_column, options.image_column, options.control_column)
        return usable(open_samples(options.path, columns, prompt), options.resolution // 2, options.skip_broken)

    @functools.cached_property
    def batches(self) -> SampleBatches:
        """Latents with captions."""
        options, pipe = self.configuration.data, self.pipe
        samples, priors = self.open_samples(options.instance_prompt), self._priors(options)
        return SampleBatches(
            samples,
            LatentCache(pipe.vae, self.cache("latents")),
            self.buckets,
            options.batch_size,
            priors,
            options.prior_weight,
            self.augmentation,
            pipe._text_encoders().clip_max_length,
            self.configuration.text.max_sequence_length,
            self.configuration.training.seed,
            self.method.image_features(self, [*samples, *priors]),
            self.method.shifted_controls,
        )

    def cache(self, name: str) -> str:
        """The directory of a cache."""
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
            with paddle.no_grad(), self.method.switched_off():
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

    @functools.cached_property
    def texts(self) -> CachedTexts:
        """Every caption encoded once; text encoders that are not trained are let go."""
        options, pipe, batches = self.configuration.text, self.pipe, self.batches
        texts = CachedTexts(
            pipe._text_encoders(),
            TextDropout(options.encoder_dropout, options.caption_dropout),
            self.cache("texts"),
            self.method.towers,
        )
        captions = [*batches.captions, *self.configuration.validation.prompts]
        texts.prepare(captions, batches.clip_length, batches.t5_length)
        for name in TOWERS:
            if name not in self.method.towers:
                setattr(pipe, name, None)
        return texts


def _check(configuration):
    METHODS[configuration.method].check(configuration)
    if configuration.validation.prompts and configuration.training.validate_every is None:
        raise ConfigError("validation.prompts are given, but training.validate_every is not: say how often.")


def _load(configuration):
    """The pipeline; 16-bit weights that a file has stay mapped."""
    model, weights = configuration.model, configuration.weights
    held: dict[str, Any] = {"storage_dtype": {"transformer": weights}} if weights in STORAGE_DTYPES else {}
    if os.path.isfile(model):
        return StableDiffusion3Pipeline.from_single_file(model, **held)
    return StableDiffusion3Pipeline.from_pretrained(model, **held)
