"""The training loop of all tasks, which resumes an interrupted run.

A task owns the loss; the trainer owns optimizer, learning rate, clipping, averages, states and the log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Callable, Protocol

import numpy as np
import paddle
from paddle import nn

from ..optimization import after_warmup
from ..training_utils import cast_training_params
from ..utils.checking import Range, checks_arguments
from ..utils.errors import ConfigError, InputError, NotFiniteError
from ..utils.logging import get_logger
from ..utils.ranks import Ranks, current_ranks
from ..utils.types import Tensors
from .checkpoints import Checkpoints, load_into, read_group, read_state
from .ema import EMA
from .log import TrainingLog
from .optimizers import Optimizer, clip_gradients, make_optimizer
from .precision import Precision
from .sharding import ShardedOptimizer, check_sharding

_logger = get_logger(__name__)


class Task(Protocol):
    """What is trained."""

    @property
    def layers(self) -> Mapping[str, nn.Layer]:
        """The networks that are trained together: their parameters with gradients are."""
        ...

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Settings, as JSON values, that a resumed run must share."""
        ...

    def loss(self, rng: np.random.Generator, batch: int) -> tuple[paddle.Tensor, dict[str, Any]]:
        """The loss of one batch, and metrics for the log.

        Args:
            rng: all randomness must come from it.
            batch: number of the batch in the whole run.
        """
        ...


@checks_arguments
@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How a task is trained.

    Args:
        max_steps: length of the whole run, in steps of the optimizer.
        learning_rate: peak of the schedule.
        lr_schedule: "constant", "linear", "cosine", "cosine_with_restarts" or "polynomial", after a linear warm-up.
        warmup_steps: at whose last the peak is reached.
        final_lr_ratio: part of the peak at which the schedule ends.
        optimizer: see :func:`ppsd3.training.optimizers.make_optimizer`.
        betas, weight_decay, epsilon: of the optimizer.
        max_grad_norm: global norm that gradients are clipped to.
        batches_per_step: batches whose mean gradient is a step's. Several ranks share them.
        mixed_precision: "no", "bf16" or "fp16" (GPU): operations in 16 bits; parameters and updates stay float32.
        ema_decay: None trains without averages.
        max_nonfinite_steps: steps in a row without a finite loss and gradient after which the run stops; each of them
            is skipped and counted.
        save_every, log_every: in steps.
        validate_every: in steps; None for never.
        checkpoints_total_limit: states to keep; None for all.
        report_to: "visualdl", or None for ``log.jsonl`` alone.
        seed: of batches and noise.
        sharding: "stage1" divides the optimizer's state among the ranks: less memory for each, the same result.

    Raises:
        InputError: a number outside its range.
    """

    max_steps: Annotated[int, Range(1)]
    learning_rate: Annotated[float, Range(above=0)] = 1e-4
    lr_schedule: str = "cosine"
    warmup_steps: Annotated[int, Range(0)] = 100
    final_lr_ratio: Annotated[float, Range(0)] = 0.02
    optimizer: str = "adamw"
    betas: Annotated[tuple[float, float], Range(0, 1)] = (0.9, 0.99)
    weight_decay: Annotated[float, Range(0)] = 0.01
    epsilon: Annotated[float, Range(above=0)] = 1e-8
    max_grad_norm: Annotated[float, Range(above=0)] = 1.0
    batches_per_step: Annotated[int, Range(1)] = 1
    mixed_precision: str = "no"
    ema_decay: Annotated[float, Range(0, below=1)] | None = 0.9995
    max_nonfinite_steps: Annotated[int, Range(1)] = 10
    save_every: Annotated[int, Range(1)] = 500
    log_every: Annotated[int, Range(1)] = 50
    validate_every: Annotated[int, Range(1)] | None = None
    checkpoints_total_limit: Annotated[int, Range(1)] | None = 2
    report_to: str | None = None
    seed: Annotated[int, Range(0)] = 0
    sharding: str | None = None

    # A resumed run may change these: they leave the numbers as they are.
    FREE = frozenset({"save_every", "log_every", "validate_every", "checkpoints_total_limit", "report_to", "sharding"})

    def __post_init__(self) -> None:
        after_warmup(self.lr_schedule)
        check_sharding(self.sharding)

    def learning_rate_at(self, step: int) -> float:
        """The rate of step ``step`` (from 0)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)
        part = after_warmup(self.lr_schedule)(min(1.0, progress))
        return self.learning_rate * (self.final_lr_ratio + (1 - self.final_lr_ratio) * part)

    def configuration(self) -> dict[str, Any]:
        """What a resumed run must share, as JSON values."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in self.FREE}
        if self.lr_schedule == "constant":
            del values["max_steps"]  # a longer run goes on as it was
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


class Trainer:
    """Trains ``task``, and resumes an interrupted run bit for bit.

    A batch's ``rng`` depends on the seed and the batch's number only, so a resumed run, and one by another number of
    ranks, sees the batches of an uninterrupted one. Paddle's global stream is seeded from it too.

    Args:
        output_dir: holds ``checkpoints`` and ``log.jsonl``.
        validate: ``validate(step)`` -> numbers for the log; called with the averages in the place of the weights.
        resume_from: "latest", the name of a state of the run, or the path of any other.
        override: resume although settings differ from the state's.

    Raises:
        ConfigError: a state is of another model, or of other settings.
        InputError: nothing is to be trained, or ``batches_per_step`` cannot be shared by the ranks.
    """

    @checks_arguments
    def __init__(
        self,
        task: Task,
        output_dir: str,
        options: TrainingOptions,
        validate: Callable[[int], Mapping[str, float]] | None = None,
        resume_from: str = "latest",
        override: bool = False,
    ) -> None:
        self.task: Task = task
        self.output_dir: str = output_dir
        self.options: TrainingOptions = options
        self.validate: Callable[[int], Mapping[str, float]] | None = validate
        self.resume_from: str = resume_from
        self.override: bool = override
        self.step: int = 0
        self.skipped: int = 0
        self._skipped_in_a_row = 0
        self._saved_step: int | None = None
        self.ranks: Ranks = current_ranks()
        if options.batches_per_step % self.ranks.world:
            raise InputError(
                f"batches_per_step is {options.batches_per_step}, which {self.ranks.world} ranks cannot share alike. "
                "Make it a multiple."
            )
        self.precision: Precision = Precision(options.mixed_precision)
        self.parameters: Tensors = trained_parameters(task)

        def make(parameters: Tensors) -> Optimizer:
            given = options.betas, options.weight_decay, options.epsilon
            return make_optimizer(options.optimizer, parameters, *given)

        sharded = options.sharding is not None
        self.optimizer: Optimizer = (
            ShardedOptimizer(self.parameters, self.ranks, make) if sharded else make(self.parameters)
        )
        self.ema: EMA | None = None if options.ema_decay is None else EMA(self.parameters, options.ema_decay)
        self.checkpoints: Checkpoints = Checkpoints(
            os.path.join(output_dir, "checkpoints"), options.checkpoints_total_limit
        )
        os.makedirs(output_dir, exist_ok=True)
        self.log: TrainingLog = TrainingLog(
            output_dir, options.log_every, options.max_steps, options.report_to, silent=not self.ranks.is_first
        )

    def run(self, until: int | None = None) -> Trainer:
        """Resumes, trains to step ``until`` (default ``max_steps``), and returns the trainer.

        Raises:
            NotFiniteError: too many steps in a row had no finite loss; the last good state is as it was.
        """
        if not self.resume():
            self.ranks.broadcast(self.parameters.values())
            self.log.begin(0)
            self.save()
        with training_mode(self.task.layers), self.log:
            while self.step < (until or self.options.max_steps):
                self.advance()
                if self.validate is not None and self._due(self.options.validate_every):
                    self._validate(self.validate)
                if self._due(self.options.save_every) and not self._skipped_in_a_row:
                    self.save()
        if self._saved_step != self.step and not self._skipped_in_a_row:
            self.save()
        return self

    def advance(self) -> None:
        """Takes one step, with the networks in the mode that they are in, and notes it in the log."""
        metrics = self._train_step()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        self.log.add(self.step, self.options.learning_rate_at(self.step - 1), metrics)

    def _due(self, every):
        return every is not None and self.step % every == 0

    def _train_step(self) -> dict[str, Any]:
        """One step of the optimizer: the mean gradient of its batches, of which each rank works on its own."""
        count = self.options.batches_per_step
        results: list[dict[str, Any]] = []
        for index in self.ranks.share(count):
            batch = self.step * count + index
            rng = np.random.default_rng([self.options.seed, batch])
            paddle.seed(int(rng.integers(2**31)))  # for what draws from Paddle's own stream: dropout in a network
            with self.precision.forward():
                loss, metrics = self.task.loss(rng, batch)
            self.precision.backward(loss / count)
            results.append({"loss": float(loss), **metrics})
        parameters = list(self.parameters.values())
        self.ranks.sum_gradients(parameters)
        norm = clip_gradients(parameters, self.options.max_grad_norm, self.precision.scale)
        (loss_sum,) = self.ranks.sum([sum(result["loss"] for result in results)])
        finite = math.isfinite(norm) and math.isfinite(loss_sum)
        if finite:
            self.optimizer.step(self.options.learning_rate_at(self.step))
        for parameter in parameters:
            parameter.clear_gradient(set_to_zero=False)
        self.precision.update(finite)
        self._count_skipped(finite, loss_sum / count)
        return {**_joined(results), "loss": loss_sum / count, "grad_norm": norm} if finite else {"skipped": 1.0}

    def _count_skipped(self, finite, loss):
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        if finite:
            return
        self.skipped += 1
        if self._skipped_in_a_row == self.options.max_nonfinite_steps:
            good = self.checkpoints.find("latest")
            raise NotFiniteError(
                f"The loss or its gradient was not finite in {self._skipped_in_a_row} steps in a row, the last at step "
                f"{self.step} (loss {loss}). The last good state is {good}. Try a lower learning_rate, "
                "max_grad_norm=0.1, or bf16 in the place of fp16."
            )
        _logger.warning("step %d is skipped: its loss (%s) or gradient is not finite", self.step, loss)

    def _validate(self, validate):
        with contextlib.ExitStack() as stack:
            stack.enter_context(training_mode(self.task.layers, False))
            if self.ema is not None:
                stack.enter_context(self.ema.applied())
            numbers = validate(self.step)
        self.ranks.wait()  # for the first, which may have drawn alone
        if numbers:
            self.log.note(self.step, **{name: float(value) for name, value in numbers.items()})

    def save(self) -> None:
        """Writes the state of this step: parameters, averages, moments, and where the run stands."""
        moments = self.optimizer.state()  # each rank may have a part
        if self.ranks.is_first:
            groups = {"parameters": self.parameters, "optimizer": moments}
            if self.ema is not None:
                groups["ema"] = self.ema.shadow
            state = {
                "step": self.step,
                "skipped": self.skipped,
                "precision": self.precision.state(),
                "log": [_jsonable(metrics) for metrics in self.log.history],
                "configuration": self._configuration(),
            }
            self.checkpoints.save(self.step, state, groups)
        self._saved_step = self.step
        self.ranks.wait()

    def resume(self) -> bool:
        """Goes on from the state that ``resume_from`` names; returns whether there is one.

        Raises:
            CheckpointFormatError: the state is damaged.
            ConfigError: it is of another model, or of other settings.
        """
        path = self.checkpoints.find(self.resume_from)
        if path is None:
            return False
        state = read_state(path)
        if not self.override:
            self._compare(path, state["configuration"])
        load_into(path, "parameters", self.parameters)
        if self.ema is not None:
            load_into(path, "ema", self.ema.shadow)
        self.optimizer.load_state(read_group(path, "optimizer"))
        self.precision.load_state(state["precision"])
        self.step, self.skipped = int(state["step"]), int(state["skipped"])
        self._saved_step = self.step
        self.log.begin(self.step, state["log"])
        if self.ranks.is_first:
            self.checkpoints.discard_after(self.step)
        self.ranks.wait()
        _logger.info("resumed %s at step %d", path, self.step)
        return True

    def _configuration(self):
        return {**self.options.configuration(), **{f"task.{k}": v for k, v in self.task.configuration.items()}}

    def _compare(self, path, saved):
        mine = self._configuration()
        different = [name for name in sorted({*mine, *saved}) if mine.get(name) != saved.get(name)]
        if different:
            listed = "; ".join(f"{name} is {mine.get(name)!r} and was {saved.get(name)!r}" for name in different)
            raise ConfigError(
                f"{path} was trained with other settings: {listed}. Use those, another output directory, or "
                "override=True (`--override`) to go on with the new ones."
            )


def trained_parameters(task: Task) -> Tensors:
    """The parameters of a task's networks that have gradients, by structured name; made float32 in place.

    Raises:
        InputError: there are none.
    """
    cast_training_params(list(task.layers.values()))
    parameters = {
        f"{name}.{key}": p for name, layer in task.layers.items() for key, p in layer.named_parameters() if p.trainable
    }
    if not parameters:
        raise InputError(f"Nothing of {', '.join(task.layers)} has gradients. Add an adapter, or unfreeze parameters.")
    return parameters


@contextlib.contextmanager
def training_mode(layers: Mapping[str, nn.Layer], training: bool = True) -> Iterator[None]:
    """Within it, the networks are in training mode or not; after it as before."""
    before = {name: layer.training for name, layer in layers.items()}
    _set_mode(layers, dict.fromkeys(layers, training))
    try:
        yield
    finally:
        _set_mode(layers, before)


def _set_mode(layers, modes):
    for name, layer in layers.items():
        layer.train() if modes[name] else layer.eval()


def _joined(results):
    """Metrics of a step's batches: means of numbers, arrays one after the other."""
    names = {name for result in results for name in result}
    values = {name: [result[name] for result in results if name in result] for name in names}
    return {
        name: np.concatenate([np.ravel(v) for v in found]) if np.ndim(found[0]) else float(np.mean(found))
        for name, found in values.items()
    }


def _jsonable(metrics):
    return {name: np.asarray(value).tolist() for name, value in metrics.items()}
