"""An optimizer whose state is divided among the processes of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable

import paddle

from ..utils.errors import InputError
from ..utils.ranks import Ranks
from ..utils.types import Tensors
from .optimizers import Optimizer


class ShardedOptimizer:
    """Each rank holds the moments of its part of the parameters, moves that part, and receives the others moved: stage
    1 of ZeRO (Rajbhandari et al., 2020), as PaddleNLP's ``sharding="stage1"``. The result is the same.

    Args:
        parameters: by structured name, the same on each rank.
        ranks: that share them.
        make: makes the optimizer of some of the parameters.
    """

    def __init__(self, parameters: Tensors, ranks: Ranks, make: Callable[[Tensors], Optimizer]) -> None:
        self.ranks: Ranks = ranks
        self.shards: list[Tensors] = divide(parameters, ranks.world)
        own = self.shards[ranks.rank]
        self.optimizer: Optimizer | None = make(own) if own else None

    def step(self, learning_rate: float) -> None:
        """Moves the parameters along their gradients."""
        if self.optimizer is not None:
            self.optimizer.step(learning_rate)
        for rank, shard in enumerate(self.shards):
            self.ranks.broadcast(shard.values(), source=rank)

    def state(self) -> Tensors:
        """On the first rank all moments by ``parameter|moment``, as an undivided optimizer has them."""
        return self.ranks.collect({} if self.optimizer is None else self.optimizer.state())

    def load_state(self, state: Mapping[str, paddle.Tensor]) -> None:
        """Takes this rank's part of a whole state, whatever number of ranks it comes from."""
        own = self.shards[self.ranks.rank]
        if self.optimizer is not None:
            self.optimizer.load_state({key: value for key, value in state.items() if key.split("|")[0] in own})


def divide(parameters: Tensors, count: int) -> list[Tensors]:
    """``count`` parts of about the same size; of fewer parameters than that, some are empty."""
    parts: list[Tensors] = [{} for _ in range(count)]
    sizes = [0] * count
    for name in sorted(parameters, key=lambda name: (-parameters[name].size, name)):
        least = sizes.index(min(sizes))
        parts[least][name] = parameters[name]
        sizes[least] += int(parameters[name].size)
    return parts


def check_sharding(sharding: str | None) -> None:
    """Raises:
    InputError: it is neither None nor "stage1".
    """
    if sharding not in (None, "stage1"):
        raise InputError(
            f"sharding={sharding!r} is not done: use 'stage1', which divides the optimizer's state among processes, or "
            "None. Stages 2 and 3 divide gradients and parameters, for which Paddle needs GPUs; "
            "gradient_checkpointing and optimizer='adafactor' save memory too."
        )
