"""Training and drawing by several processes, on Paddle's own engine.

``python -m paddle.distributed.launch`` starts the processes and tells each its rank; :func:`current_ranks` joins them.
Gradients are summed by hand, in float32: Paddle's ``DataParallel`` fails together with gradient checkpointing, gloo has
no mean, and its float16 sums are infinite in Paddle 3.3.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import paddle
import paddle.distributed as dist

from ..utils.paddle_internals import no_grad

_BUCKET = 1 << 25  # numbers that one message holds


class Ranks:
    """The processes that work together; this one is ``rank`` of ``world``."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes states, logs and pictures."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` pieces of work are this process's."""
        return range(self.rank, count, self.world)

    def sum_gradients(self, parameters: Iterable[paddle.Tensor]) -> None:
        """Replaces each gradient by its sum over all ranks; which ones exist must be the same everywhere."""

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all ranks."""
        return list(numbers)

    def broadcast(self, tensors: Iterable[paddle.Tensor]) -> None:
        """Replaces tensors by those of the first rank."""

    def wait(self) -> None:
        """Returns when all ranks have come here."""


class LaunchedRanks(Ranks):
    """The processes that ``paddle.distributed.launch`` started."""

    def __init__(self) -> None:
        dist.init_parallel_env()
        self.rank: int = dist.get_rank()
        self.world: int = dist.get_world_size()

    @no_grad
    def sum_gradients(self, parameters: Iterable[paddle.Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for bucket in _buckets(gradients):
            flat = paddle.concat([g.astype("float32").flatten() for g in bucket])
            dist.all_reduce(flat)
            parts = flat.split([g.size for g in bucket])
            for gradient, part in zip(bucket, parts):
                gradient.set_value(part.reshape(gradient.shape).astype(gradient.dtype))

    def sum(self, numbers: Sequence[float]) -> list[float]:
        # each number as three float32 parts, which hold the digits of a double
        rest, parts = np.asarray(numbers, np.float64), []
        for _ in range(3):
            parts.append(rest.astype(np.float32))
            rest = rest - parts[-1]
        gathered: list[paddle.Tensor] = []
        dist.all_gather(gathered, paddle.to_tensor(np.stack(parts)))
        return np.sum([g.numpy().astype(np.float64).sum(0) for g in gathered], axis=0).tolist()

    @no_grad
    def broadcast(self, tensors: Iterable[paddle.Tensor]) -> None:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        dist.barrier()


def current_ranks() -> Ranks:
    """The processes that this one was started with; alone, unless a launcher says otherwise."""
    return LaunchedRanks() if int(os.environ.get("PADDLE_TRAINERS_NUM") or 1) > 1 else Ranks()


def _buckets(gradients):
    bucket, size = [], 0
    for gradient in gradients:
        if bucket and size + gradient.size > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.size
    if bucket:
        yield bucket
