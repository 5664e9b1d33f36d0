"""Learning rates over a training run, where programs for diffusers and ppdiffusers look for them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Callable

from paddle.optimizer.lr import LambdaDecay

from .utils.checking import Range, checks_arguments
from .utils.errors import InputError

__path__: list[str] = []  # see utils/elsewhere.py


@checks_arguments
def after_warmup(name: str, cycles: float | None = None, power: float = 1.0) -> Callable[[float], float]:
    """The rate, as a part of its peak, at ``progress`` (0 to 1) through the steps after the warm-up.

    Args:
        name: "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts" or "polynomial".
        cycles: waves of "cosine" (default 0.5) or restarts (default 1).
        power: of "polynomial".

    Raises:
        InputError: an unknown name.
    """
    cycles = (0.5 if name == "cosine" else 1) if cycles is None else cycles
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda progress: 1.0,
        "constant_with_warmup": lambda progress: 1.0,
        "linear": lambda progress: 1.0 - progress,
        "cosine": lambda progress: max(0.0, 0.5 * (1.0 + math.cos(math.pi * 2.0 * cycles * progress))),
        "cosine_with_restarts": lambda progress: (
            0.0 if progress >= 1 else 0.5 * (1.0 + math.cos(math.pi * (cycles * progress % 1.0)))
        ),
        "polynomial": lambda progress: (1.0 - progress) ** power,
    }
    if name not in shapes:
        raise InputError(f"name is {name!r}; the schedules are {', '.join(shapes)}.")
    return shapes[name]


@checks_arguments
def get_scheduler(
    name: str,
    learning_rate: float | None = None,
    num_warmup_steps: Annotated[int, Range(0)] = 0,
    num_training_steps: Annotated[int, Range(1)] | None = None,
    num_cycles: float | None = None,
    power: float = 1.0,
    last_epoch: int = -1,
    optimizer: Any = None,
) -> LambdaDecay:
    """A schedule of the learning rate; call its ``step()`` after each step of the optimizer.

    Args:
        name: "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts" or "polynomial".
        learning_rate: peak. Default: the optimizer's.
        num_warmup_steps: over which it rises from 0; none for "constant".
        num_training_steps: at whose end "linear" and "polynomial" reach 0.
        num_cycles: waves of "cosine" (default 0.5) or restarts (default 1).
        power: of "polynomial".
        last_epoch: the step before the first one, to resume.
        optimizer: Paddle's, which then takes the schedule.

    Raises:
        InputError: an unknown name, or a number that is missing.
    """
    shape = after_warmup(name, num_cycles, power)
    if not name.startswith("constant") and num_training_steps is None:
        raise InputError(f"The schedule {name!r} needs num_training_steps.")
    if learning_rate is None and optimizer is None:
        raise InputError("Pass learning_rate, the peak of the schedule, or the optimizer that has it.")
    peak = optimizer.get_lr() if learning_rate is None else learning_rate
    warmup = 0 if name == "constant" else num_warmup_steps

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        return shape(min(1.0, (step - warmup) / max(1, (num_training_steps or 0) - warmup)))

    schedule = LambdaDecay(peak, factor, last_epoch=last_epoch)
    if optimizer is not None:
        optimizer.set_lr_scheduler(schedule)
    return schedule
