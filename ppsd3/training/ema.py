"""Exponential moving average (EMA) of weights, which is used for sampling and shipped."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated

import paddle

from ..utils.checking import Range, checks_arguments
from ..utils.paddle_internals import no_grad
from ..utils.types import Tensors


@checks_arguments
@dataclasses.dataclass
class EMA:
    """Shadow copy of parameters, ``shadow = decay * shadow + (1 - decay) * parameter`` per step, always float32.

    In bfloat16 a step of ``1 - decay`` would round to nothing.

    Args:
        parameters: by structured name.
        decay: per step, in [0, 1). At first ``(1 + step) / (10 + step)`` if that is smaller, so that the random
            initial weights are soon forgotten.
        every: steps between updates; the decay is raised to this power, so that the horizon stays the same.
    """

    parameters: Mapping[str, paddle.Tensor]
    decay: Annotated[float, Range(0, below=1)] = 0.9995
    every: Annotated[int, Range(1)] = 4
    shadow: Tensors = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.shadow = {name: float32_copy(p) for name, p in self.parameters.items()}

    @no_grad
    def update(self, step: int) -> None:
        """Call once a step, after the optimizer."""
        if step % self.every:
            return
        keep = min(self.decay, (1 + step) / (10 + step)) ** self.every
        for name, parameter in self.parameters.items():
            shadow = self.shadow[name]
            shadow.scale_(keep)
            shadow.add_(parameter.detach().astype("float32") * (1 - keep))

    def copy_to_parameters(self) -> None:
        """Sets the parameters to the averages for good."""
        _assign(self.parameters, self.shadow)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Sets the parameters to the averages within the block, and restores their own values after it."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        _assign(self.parameters, self.shadow)
        try:
            yield
        finally:
            _assign(self.parameters, own)


def float32_copy(tensor: paddle.Tensor) -> paddle.Tensor:
    """A detached copy in float32, in which small updates do not vanish."""
    copy = tensor.detach().astype("float32")
    return copy.clone() if copy.dtype == tensor.dtype else copy


@no_grad
def _assign(parameters: Mapping[str, paddle.Tensor], values: Mapping[str, paddle.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.set_value(values[name].astype(parameter.dtype))
