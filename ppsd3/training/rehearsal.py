"""A run in small, which leaves nothing behind: for ``ppsd3 train --dry-run`` and ``--estimate``."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import os
import re
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from ..serialization.writers import byte_size
from ..utils.errors import InputError
from ..utils.files import bytes_in
from ..utils.sizes import in_words
from .checkpoints import Checkpoints
from .configuration import DataOptions, TrainConfiguration
from .data.batches import BatchPlan
from .data.buckets import Size
from .data.samples import PICTURE_SUFFIXES, Sample
from .runs import TrainingRun
from .texts import TOWERS, CachedTexts
from .trainer import training_mode


class Rehearsal(TrainingRun):
    """The run of a configuration on the samples of its first batch, with one picture of the class, in ``directory``.

    Args:
        configuration: of the whole run, whose output directory is not touched.
        directory: an empty one, in the place of the output directory.

    Attributes:
        samples: all of the whole run.
        priors: all pictures of the class that are there.
        sizes: the bucket of each.
        plan: which samples each batch of the whole run has.
        seconds_of_texts: that its captions took to encode.
        bytes_of_texts: of the text encoders that went after that.

    Raises:
        ConfigError, InputError: as :class:`~ppsd3.training.runs.TrainingRun`.
    """

    def __init__(self, configuration: TrainConfiguration, directory: str) -> None:
        self.whole: TrainConfiguration = configuration
        self.samples: list[Sample] = []
        self.priors: list[Sample] = []
        self.sizes: list[Size] = []
        self.plan: BatchPlan | None = None
        self.seconds_of_texts: float = 0.0
        self.bytes_of_texts: int = 0
        data = configuration.data
        small = dataclasses.replace(data, cache_dir=None, class_images=1)
        if data.class_prompt is not None:
            folder = _class_folder(configuration)
            small = dataclasses.replace(small, class_path=folder if pictures_in(folder) else None)
        super().__init__(dataclasses.replace(configuration, output=directory, data=small))

    def open_samples(self, prompt: str | None) -> list[Sample]:
        self.samples = super().open_samples(prompt)
        self.sizes = [self.buckets.nearest(sample.size or sample.open().size) for sample in self.samples]
        self.plan = BatchPlan(self.sizes, self.whole.data.batch_size, self.whole.training.seed)
        return [self.samples[i] for i in dict.fromkeys(self.plan(0))]

    def _priors(self, options: DataOptions) -> list[Sample]:
        self.priors = super()._priors(options)
        return self.priors[: options.batch_size]

    @functools.cached_property
    def texts(self) -> CachedTexts:
        _ = self.batches  # whose pictures of the class are drawn first
        towers = [getattr(self.pipe, name) for name in TOWERS if name not in self.method.towers]
        self.bytes_of_texts = sum(bytes_of(tower.state_dict()) for tower in towers if tower is not None)
        start = time.perf_counter()
        texts = super().texts
        self.seconds_of_texts = time.perf_counter() - start
        return texts

    def train(self, steps: int) -> list[float]:
        """Takes so many steps; returns the seconds of each."""
        seconds = []
        with training_mode(self.task.layers):
            for _ in range(steps):
                start = time.perf_counter()
                self.trainer.advance()
                seconds.append(time.perf_counter() - start)
        return seconds

    @property
    def captions(self) -> list[str]:
        """All that the whole run encodes."""
        samples = (*self.samples, *self.priors)
        return sorted({"", *(sample.caption for sample in samples), *self.whole.validation.prompts})


def dry_run(configuration: TrainConfiguration) -> list[str]:
    """One step of everything in a temporary directory, then what ``ppsd3 train`` would do, a line each.

    Loads the model and the data, encodes the first batch, trains one step, saves and reads a state, draws the
    validation pictures, and saves the result. The output directory stays as it is, or is not made.

    Raises:
        ConfigError, InputError: what the run itself would raise.
    """
    refuse_ranks("--dry-run")
    with tempfile.TemporaryDirectory(prefix="ppsd3-dry-run-") as directory:
        run = Rehearsal(configuration, directory)
        trainer = run.trainer
        trainer.log.begin(0)
        (seconds,) = run.train(1)
        trainer.save()
        trainer.resume()
        if run.method.validates:
            run.validate(1)
        run.save_result()
        return [*_what_is_trained(run), *_data(run), *_steps(run, seconds), *_files(run, directory)]


def refuse_ranks(what: str) -> None:
    """Raises InputError where several processes were started to train together."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM") or 1) > 1:
        raise InputError(f"{what} is for one process: leave paddle.distributed.launch out.")


def pictures_in(folder: str) -> int:
    """Number of pictures in a folder; 0 if it is missing."""
    if not os.path.isdir(folder):
        return 0
    return sum(name.lower().endswith(PICTURE_SUFFIXES) for name in os.listdir(folder))


def latest_step(configuration: TrainConfiguration) -> int | None:
    """The step at which the run would go on; None if it would begin."""
    directory = os.path.join(configuration.output, "checkpoints")
    states = Checkpoints(directory).paths() if os.path.isdir(directory) else []
    return int(re.findall(r"\d+", os.path.basename(states[-1]))[0]) if states else None


def _class_folder(configuration):
    return configuration.data.class_path or os.path.join(configuration.output, "class_images")


def _what_is_trained(run):
    counts: collections.Counter[str] = collections.Counter()
    for name, parameter in run.trainer.parameters.items():
        counts[name.split(".")[0]] += int(parameter.size)
    tensors = len(run.trainer.parameters)
    networks = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    yield f"method {run.whole.method}: {sum(counts.values()):,} numbers in {tensors} tensors are trained ({networks})"


def _data(run):
    data = run.whole.data
    sizes = collections.Counter(run.sizes)
    buckets = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sorted(sizes.items()))
    captions = f", {len(run.captions)} captions to encode" if "texts" in vars(run) else ""
    yield f"data: {len(run.samples)} samples{captions}; buckets {buckets}"
    if data.class_prompt is not None:
        there = pictures_in(_class_folder(run.whole))
        missing = max(0, data.class_images - there)
        yield f"class: {there} pictures are there, {missing} would be drawn"


def _steps(run, seconds):
    training, plan = run.whole.training, run.plan
    epoch = plan.batches_per_epoch / training.batches_per_step
    yield (
        f"steps: {training.max_steps} of {training.batches_per_step} x {plan.batch_size} samples, "
        f"{training.max_steps / epoch:.1f} epochs of {plan.batches_per_epoch} batches"
    )
    begun = latest_step(run.whole)
    if begun is not None:
        yield f"{run.whole.output} has a state of step {begun}, at which the run would go on unless --resume says more"
    entry = run.trainer.log.history[-1] if run.trainer.log.history else {}
    loss = f"; its loss was {entry['loss']:.4g}" if "loss" in entry else ""
    yield f"the first step took {seconds:.2f} s, with what is done once{loss}"


def _files(run, directory):
    training, output = run.whole.training, run.whole.output
    state = bytes_in(run.trainer.checkpoints.paths()[-1])
    saved = 1 + math.ceil(training.max_steps / training.save_every)
    kept = min(saved, training.checkpoints_total_limit or saved)
    result = run.method.result
    yield f"files in {output}:"
    yield f"  checkpoints/: {saved} states of {in_words(state)}, of which {kept} stay"
    yield f"  log.jsonl: a line every {training.log_every} steps"
    if run.method.validates and training.validate_every:
        yield f"  validation/: {training.max_steps // training.validate_every} pictures"
    cached = bytes_in(os.path.join(directory, "cache"))
    if cached:
        where = run.whole.data.cache_dir or "cache/"
        yield f"  {where}: {in_words(cached)} for the first batch of {run.plan.batches_per_epoch}"
    yield f"  {result}: {in_words(bytes_in(os.path.join(directory, result)))}"


def bytes_of(tensors: Mapping[str, Any]) -> int:
    """Bytes of tensors by name."""
    return sum(byte_size(tensor) for tensor in tensors.values())
