"""The training loop of all tasks, which resumes an interrupted run.

A task owns the loss; the trainer owns optimizer, learning rate, clipping, averages, checkpoints and the log.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import nn

from ..utils.errors import CheckpointFormatError, ConfigError
from ..utils.files import atomic_write
from ..utils.logging import get_logger
from ..utils.types import Tensors
from .ema import EMA

_logger = get_logger(__name__)


class Task(Protocol):
    """What is trained."""

    @property
    def layers(self) -> Mapping[str, nn.Layer]:
        """The networks that are trained together."""
        ...

    def loss(self, rng: np.random.Generator, step: int) -> tuple[paddle.Tensor, dict[str, float]]:
        """The loss of one step, and metrics for the log. All randomness must come from ``rng``."""
        ...


class Trainer:
    """Trains ``task`` for ``max_steps`` steps of AdamW, and resumes an interrupted run.

    The task's ``rng`` depends on seed and step only, so a resumed run sees the batches of an uninterrupted one.

    Args:
        output_dir: holds ``state.npz`` and ``log.jsonl``.
        max_steps: length of the whole run.
        learning_rate: peak; reached after ``warmup_steps``, then a cosine to ``final_lr_ratio`` times the peak.
        weight_decay, betas: of AdamW; tensors of fewer than two axes are not decayed.
        max_grad_norm: global norm that gradients are clipped to.
        ema_decay: None trains without averages.
        save_every, log_every: in steps.
        seed: of batches and noise.

    Raises:
        ConfigError: ``output_dir`` holds the state of another model.
    """

    def __init__(
        self,
        task: Task,
        output_dir: str,
        max_steps: int,
        learning_rate: float = 1e-3,
        warmup_steps: int = 200,
        final_lr_ratio: float = 0.0,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        max_grad_norm: float = 1.0,
        ema_decay: float | None = 0.9995,
        save_every: int = 500,
        log_every: int = 50,
        seed: int = 0,
    ) -> None:
        self.task: Task = task
        self.output_dir: str = output_dir
        self.max_steps: int = max_steps
        self.save_every: int = save_every
        self.log_every: int = log_every
        self.seed: int = seed
        self.learning_rate: float = learning_rate
        self.warmup_steps: int = warmup_steps
        self.final_lr_ratio: float = final_lr_ratio
        self.step: int = 0
        self.parameters: Tensors = {
            f"{name}.{key}": p
            for name, layer in task.layers.items()
            for key, p in layer.named_parameters()
            if p.trainable
        }
        decayed = {p.name for p in self.parameters.values() if p.ndim > 1}
        self.optimizer: paddle.optimizer.Optimizer = paddle.optimizer.AdamW(
            learning_rate=learning_rate,
            beta1=betas[0],
            beta2=betas[1],
            parameters=list(self.parameters.values()),
            weight_decay=weight_decay,
            apply_decay_param_fun=decayed.__contains__,
            grad_clip=paddle.nn.ClipGradByGlobalNorm(max_grad_norm),
        )
        self.ema: EMA | None = None if ema_decay is None else EMA(self.parameters, ema_decay)
        os.makedirs(output_dir, exist_ok=True)

    @property
    def state_file(self) -> str:
        """Path of the resumable state."""
        return os.path.join(self.output_dir, "state.npz")

    def run(self, until: int | None = None) -> Trainer:
        """Resumes from ``output_dir``, trains to step ``until`` (default ``max_steps``), and returns the trainer."""
        self.resume()
        self._set_training(True)
        last, clock = self.step, time.monotonic()
        history = []
        while self.step < (until or self.max_steps):
            loss, metrics = self.task.loss(np.random.default_rng([self.seed, self.step]), self.step)
            loss.backward()
            self.optimizer.set_lr(self.learning_rate_at(self.step))
            self.optimizer.step()
            self.optimizer.clear_grad()
            self.step += 1
            if self.ema is not None:
                self.ema.update(self.step)
            history.append({"loss": float(loss), **metrics})
            if self.step % self.log_every == 0:
                now = time.monotonic()
                self._log(history, (self.step - last) / (now - clock))
                history, last, clock = [], self.step, now
            if self.step % self.save_every == 0:
                self.save()
        self.save()
        self._set_training(False)
        return self

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to ``final_lr_ratio`` of the peak."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)
        cosine = 0.5 * (1 + np.cos(np.pi * min(1.0, progress)))
        return float(self.learning_rate * (self.final_lr_ratio + (1 - self.final_lr_ratio) * cosine))

    def save(self) -> None:
        """Writes parameters, averages, optimizer moments and the step, atomically."""
        arrays: dict[str, Any] = {f"model/{name}": p.numpy() for name, p in self.parameters.items()}
        if self.ema is not None:
            arrays.update({f"ema/{name}": value.numpy() for name, value in self.ema.shadow.items()})
        arrays.update({f"optimizer/{name}": value for name, value in self._optimizer_state().items()})
        with atomic_write(self.state_file) as file:
            np.savez(file, step=np.int64(self.step), **arrays)

    def resume(self) -> bool:
        """Loads ``state_file`` if it exists; returns whether it did.

        Raises:
            CheckpointFormatError: the file is damaged.
            ConfigError: it belongs to another model.
        """
        if not os.path.exists(self.state_file):
            return False
        try:
            with np.load(self.state_file) as archive:
                state = {key: archive[key] for key in archive.files}
        except Exception as error:
            raise CheckpointFormatError(
                f"{self.state_file} cannot be read ({error}). Delete it to start again, or restore a copy."
            ) from error
        self._load_group(state, "model/", self.parameters)
        if self.ema is not None:
            self._load_group(state, "ema/", self.ema.shadow)
        self._restore_optimizer({k[len("optimizer/") :]: v for k, v in state.items() if k.startswith("optimizer/")})
        self.step = int(state["step"])
        _logger.info("resumed %s at step %d", self.output_dir, self.step)
        return True

    def _load_group(self, state: Mapping[str, np.ndarray], prefix: str, tensors: Mapping[str, paddle.Tensor]) -> None:
        for name, tensor in tensors.items():
            value = state.get(prefix + name)
            if value is None or list(value.shape) != list(tensor.shape):
                found = "nothing" if value is None else f"shape {list(value.shape)}"
                raise ConfigError(
                    f"{self.state_file} has {found} for {name}, where the model has {list(tensor.shape)}: "
                    "it is of another model. Use another output directory, or delete the file."
                )
            tensor.set_value(value)

    # Paddle names optimizer state after automatic parameter names, which depend on what was built before in the
    # process; on disk the structured names are used.

    def _optimizer_state(self):
        structured = {p.name: name for name, p in self.parameters.items()}
        state = {}
        for key, value in self.optimizer.state_dict().items():
            owner = next((auto for auto in structured if key.startswith(auto + "_")), None)
            if owner is not None:
                state[structured[owner] + "|" + key[len(owner) + 1 :]] = np.asarray(value.numpy())
        return state

    def _restore_optimizer(self, saved):
        if saved:
            state = {}
            for key, value in saved.items():
                name, suffix = key.split("|")
                state[f"{self.parameters[name].name}_{suffix}"] = paddle.to_tensor(value)
            self.optimizer.set_state_dict(state)

    def _set_training(self, value):
        for layer in self.task.layers.values():
            layer.train() if value else layer.eval()

    def _log(self, history, rate):
        means = {key: float(np.mean([entry[key] for entry in history if key in entry])) for key in history[-1]}
        entry = {"step": self.step, "lr": self.learning_rate_at(self.step), "steps_per_second": rate, **means}
        with open(os.path.join(self.output_dir, "log.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps({key: round(value, 6) for key, value in entry.items()}) + "\n")
        text = "  ".join(f"{key} {value:.4g}" for key, value in entry.items())
        print(f"[{os.path.basename(self.output_dir)}] {text}", flush=True)
