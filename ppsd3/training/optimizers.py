"""Optimizers by name, with a state that is told by the structured names of parameters.

Paddle names its optimizers' state after automatic parameter names, which depend on what was built before in the
process. On disk the structured names stand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

import numpy as np
import paddle

from ..utils.checking import Range, checks_arguments
from ..utils.errors import InputError
from ..utils.paddle_internals import no_grad
from ..utils.types import Tensors

OPTIMIZERS = ("adamw", "adafactor", "lamb", "sgd")


class Optimizer(Protocol):
    """What the trainer asks of an optimizer. Gradients are clipped before."""

    def step(self, learning_rate: float) -> None:
        """Moves the parameters along their gradients."""
        ...

    def state(self) -> Tensors:
        """Moments by ``parameter|moment``."""
        ...

    def load_state(self, state: Mapping[str, paddle.Tensor]) -> None:
        """Sets what :meth:`state` gave, of the same parameters."""
        ...


@checks_arguments
def make_optimizer(
    name: str,
    parameters: Tensors,
    betas: Annotated[tuple[float, float], Range(0, 1)] = (0.9, 0.999),
    weight_decay: Annotated[float, Range(0)] = 0.01,
    epsilon: Annotated[float, Range(above=0)] = 1e-8,
) -> Optimizer:
    """An optimizer of ``parameters``, by structured name.

    Args:
        name: "adamw" (two moments a number), "adafactor" (a row and a column of one moment a matrix: hardly any
            memory; Shazeer and Stern 2018), "lamb" (two moments; for large batches) or "sgd" (with a momentum of
            ``betas[0]``, none at 0).
        betas: of the moments; of "adafactor" only the first counts, as a momentum, none at 0.
        weight_decay: decoupled, per unit of learning rate; tensors of fewer than two axes are not decayed.
        epsilon: added to the roots of second moments.

    Raises:
        InputError: an unknown name, or one whose state Paddle cannot hold ("adamw8bit", "prodigy").
    """
    if name in ("adamw8bit", "adam8bit", "prodigy", "lion8bit"):
        raise InputError(
            f"optimizer={name!r}: no kept library has it for Paddle. 'adafactor' needs less memory than 8 bits would; "
            "for Prodigy's part, search the learning rate with 'adamw'."
        )
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer={name!r} is unknown: use {', '.join(map(repr, OPTIMIZERS))}.")
    if name == "adafactor":
        return Adafactor(parameters, weight_decay, momentum=betas[0])
    return PaddleOptimizer(name, parameters, betas, weight_decay, epsilon)


class PaddleOptimizer:
    """One of Paddle's optimizers."""

    def __init__(
        self,
        name: str,
        parameters: Tensors,
        betas: tuple[float, float],
        weight_decay: float,
        epsilon: float,
    ) -> None:
        self.parameters: Tensors = parameters
        decayed = {p.name for p in parameters.values() if p.ndim > 1}
        given: dict[str, Any] = dict(learning_rate=1e-3, parameters=list(parameters.values()))
        moments: dict[str, Any] = dict(beta1=betas[0], beta2=betas[1], epsilon=epsilon)
        if name == "adamw":
            self.optimizer: paddle.optimizer.Optimizer = paddle.optimizer.AdamW(
                **given, **moments, weight_decay=weight_decay, apply_decay_param_fun=decayed.__contains__
            )
        elif name == "lamb":
            self.optimizer = paddle.optimizer.Lamb(
                **given,
                **moments,
                lamb_weight_decay=weight_decay,
                exclude_from_weight_decay_fn=lambda p: p.name not in decayed,
            )
        else:
            self.optimizer = paddle.optimizer.Momentum(**given, momentum=betas[0])
        # Momentum has no decoupled decay of its own.
        self._decay = weight_decay if name == "sgd" else 0.0

    @no_grad
    def step(self, learning_rate: float) -> None:
        if self._decay:
            for parameter in self.parameters.values():
                if parameter.ndim > 1 and parameter.grad is not None:
                    parameter.scale_(1 - learning_rate * self._decay)
        self.optimizer.set_lr(learning_rate)
        self.optimizer.step()

    def state(self) -> Tensors:
        structured = {p.name: name for name, p in self.parameters.items()}
        state = {}
        for key, value in self.optimizer.state_dict().items():
            owner = next((auto for auto in structured if key.startswith(auto + "_")), None)
            if owner is not None:
                state[structured[owner] + "|" + key[len(owner) + 1 :]] = value
        return state

    def load_state(self, state: Mapping[str, paddle.Tensor]) -> None:
        if state:
            renamed = {}
            for key, value in state.items():
                name, moment = key.split("|")
                renamed[f"{self.parameters[name].name}_{moment}"] = value
            self.optimizer.set_state_dict(renamed)


class Adafactor:
    """Adam with one second moment a row and a column of each matrix (Shazeer and Stern 2018), by a given rate.

    Second moments decay by ``1 - step^-0.8``; an update's root mean square is clipped at 1. Axes behind the first
    count as one, so that a convolution is a matrix too.

    Args:
        parameters: by structured name.
        weight_decay: decoupled, of matrices.
        momentum: of the updates; 0 saves its memory.
    """

    EPSILON = 1e-30

    def __init__(self, parameters: Tensors, weight_decay: float = 0.0, momentum: float = 0.0) -> None:
        self.parameters: Tensors = parameters
        self.weight_decay: float = weight_decay
        self.momentum: float = momentum
        self.steps: dict[str, int] = {}
        self.moments: Tensors = {}

    @no_grad
    def step(self, learning_rate: float) -> None:
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            update = self._update(name, parameter.grad.astype("float32"))
            if self.weight_decay and parameter.ndim > 1:
                parameter.scale_(1 - learning_rate * self.weight_decay)
            parameter.subtract_((learning_rate * update).astype(parameter.dtype))

    def _update(self, name, gradient):
        self.steps[name] = self.steps.get(name, 0) + 1
        keep = 1 - self.steps[name] ** -0.8
        squared = gradient.square() + self.EPSILON
        if gradient.ndim > 1:
            flat = squared.flatten(1)
            rows = self._moving(f"{name}|row", flat.mean(axis=1), keep)
            columns = self._moving(f"{name}|column", flat.mean(axis=0), keep)
            scale = (rows / rows.mean()).rsqrt().unsqueeze(1) * columns.rsqrt().unsqueeze(0)
            update = gradient * scale.reshape(gradient.shape)
        else:
            update = gradient * self._moving(f"{name}|square", squared, keep).rsqrt()
        size = math.sqrt(float(update.square().mean()))
        update = update / max(1.0, size)
        return self._moving(f"{name}|momentum", update, self.momentum) if self.momentum else update

    def _moving(self, key, value, keep):
        before = self.moments.get(key)
        self.moments[key] = (1 - keep) * value if before is None else keep * before + (1 - keep) * value
        return self.moments[key]

    def state(self) -> Tensors:
        steps = {f"{name}|step": paddle.to_tensor(float(step)) for name, step in self.steps.items()}
        return {**self.moments, **steps}

    def load_state(self, state: Mapping[str, paddle.Tensor]) -> None:
        self.moments = {key: value.clone() for key, value in state.items() if not key.endswith("|step")}
        self.steps = {key[: -len("|step")]: int(value) for key, value in state.items() if key.endswith("|step")}


@no_grad
def clip_gradients(parameters: Sequence[paddle.Tensor], max_norm: float, scale: float = 1.0) -> float:
    """Divides all gradients by ``scale`` and bounds their global norm; returns the norm before the bound.

    A norm that is not finite leaves the gradients as they are, for the caller to throw away.

    Args:
        max_norm: of all gradients together; infinity for no bound.
        scale: what the loss was multiplied by, against underflow in float16.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    squares = paddle.stack([g.astype("float32").square().sum() for g in gradients]).numpy()
    norm = math.sqrt(math.fsum(squares)) / scale if np.isfinite(squares).all() else math.nan
    factor = min(1.0, max_norm / (norm + 1e-6)) / scale
    if math.isfinite(norm) and factor != 1:
        for gradient in gradients:
            gradient.scale_(factor)
    return norm
