"""Several processes that train or draw together, on Paddle's own engine.

``python -m paddle.distributed.launch`` starts the processes and tells each its rank; :func:`current_ranks` joins them.
Gradients are summed by hand, in float32: Paddle's ``DataParallel`` fails together with gradient checkpointing, gloo has
no mean, and its float16 sums are infinite in Paddle 3.3.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

from .paddle_internals import no_grad
from .rendezvous import Rendezvous
from .types import Tensors

_BUCKET = 1 << 25  # numbers that one message holds
_LONG_WORK = 1.0  # seconds


class Ranks:
    """The processes that work together; this one is ``rank`` of ``world``. Every method is called by all of them."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes states, logs and pictures."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` pieces of work are this process's."""
        return range(self.rank, count, self.world)

    def deal(self, count: int) -> Iterable[int]:
        """Like :meth:`share`; ends when all ranks are done with theirs."""
        return range(count)

    def agree(self, number: int) -> int:
        """The first rank's number, less than 2**53."""
        return number

    def sum_gradients(self, parameters: Iterable[paddle.Tensor]) -> None:
        """Replaces each gradient by its sum over all ranks; which ones exist must be the same everywhere."""

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all ranks."""
        return list(numbers)

    def gather(self, tensor: paddle.Tensor) -> list[paddle.Tensor]:
        """The tensors of all ranks, of one shape and dtype, in the order of ranks."""
        return [tensor]

    def broadcast(self, tensors: Iterable[paddle.Tensor], source: int = 0) -> None:
        """Replaces tensors by those of the rank ``source``."""

    def collect(self, tensors: Mapping[str, paddle.Tensor]) -> Tensors:
        """On the first rank the tensors of all, whose names differ from rank to rank; elsewhere this rank's own."""
        return dict(tensors)

    def wait(self) -> None:
        """Returns when all ranks have come here, however long that takes."""


class LaunchedRanks(Ranks):
    """The processes that ``paddle.distributed.launch`` started.

    Raises (in all methods):
        RankLostError: another process has ended or does not answer.
    """

    def __init__(self) -> None:
        dist.init_parallel_env()
        self.rank: int = dist.get_rank()
        self.world: int = dist.get_world_size()
        self._rendezvous = Rendezvous(self.rank, self.world)
        self._since = time.monotonic()
        self._is_long: dict[str, bool] = {}

    @contextlib.contextmanager
    def _exchange(self, kind: str) -> Iterator[None]:
        """Around each exchange. gloo gives up on a rank that comes 30 seconds late, so ranks meet first where the work
        before the last exchange of this kind was long for one of them. A meeting takes up to 0.1 s, too much for each
        step of a small model."""
        worked = time.monotonic() - self._since
        if self._is_long.get(kind, True):
            self._rendezvous.meet()
        try:
            yield
            seconds: list[paddle.Tensor] = []
            dist.all_gather(seconds, paddle.to_tensor([worked], dtype="float32"))
        except (RuntimeError, ValueError, OSError) as error:  # what gloo and Paddle make of a lost connection
            raise self._rendezvous.error(error) from error
        self._is_long[kind] = max(float(one.numpy()[0]) for one in seconds) > _LONG_WORK
        self._since = time.monotonic()

    def deal(self, count: int) -> Iterable[int]:
        yield from self.share(count)
        self.wait()

    def agree(self, number: int) -> int:
        return int(self.sum([number if self.is_first else 0])[0])

    @no_grad
    def sum_gradients(self, parameters: Iterable[paddle.Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        with self._exchange("sum_gradients"):
            for bucket in _buckets(gradients):
                flat = _flat(bucket)
                dist.all_reduce(flat)
                _unflatten(flat, bucket)

    def sum(self, numbers: Sequence[float]) -> list[float]:
        # each number as three float32 parts, which hold the digits of a double
        rest, parts = np.asarray(numbers, np.float64), []
        for _ in range(3):
            parts.append(rest.astype(np.float32))
            rest = rest - parts[-1]
        gathered = self.gather(paddle.to_tensor(np.stack(parts)))
        return np.sum([g.numpy().astype(np.float64).sum(0) for g in gathered], axis=0).tolist()

    @no_grad
    def gather(self, tensor: paddle.Tensor) -> list[paddle.Tensor]:
        gathered: list[paddle.Tensor] = []
        with self._exchange("gather"):
            dist.all_gather(gathered, tensor)
        return gathered

    @no_grad
    def broadcast(self, tensors: Iterable[paddle.Tensor], source: int = 0) -> None:
        with self._exchange("broadcast"):
            for bucket in _buckets(tensors):
                flat = _flat(bucket)
                dist.broadcast(flat, src=source)
                if self.rank != source:
                    _unflatten(flat, bucket)

    @no_grad
    def collect(self, tensors: Mapping[str, paddle.Tensor]) -> Tensors:
        listed: list[Any] = []
        with self._exchange("collect"):
            dist.all_gather_object(listed, [(name, list(t.shape), str(t.dtype)[7:]) for name, t in tensors.items()])
        collected = dict(tensors)
        for source in range(1, self.world):
            self.wait()  # for all of another rank's, which may take longer than gloo's patience
            with self._exchange("collect"):
                for name, shape, dtype in listed[source]:
                    # not send and recv: gloo counts each rank's operations, and would take others for the next ones
                    tensor = tensors[name] if self.rank == source else paddle.zeros(shape, dtype)
                    dist.broadcast(tensor, src=source)
                    if self.is_first:
                        collected[name] = tensor
        return collected

    def wait(self) -> None:
        self._rendezvous.meet()
        self._since = time.monotonic()


@functools.cache
def current_ranks() -> Ranks:
    """The processes that this one was started with, joined at the first call; alone, unless a launcher says otherwise.

    Raises:
        RankLostError: they cannot be reached.
    """
    return LaunchedRanks() if int(os.environ.get("PADDLE_TRAINERS_NUM") or 1) > 1 else Ranks()


def _flat(tensors):
    """All numbers of ``tensors``, in float32."""
    return paddle.concat([tensor.astype("float32").flatten() for tensor in tensors])


def _unflatten(flat, tensors):
    """Sets ``tensors`` to what :func:`_flat` made of others like them."""
    for tensor, part in zip(tensors, flat.split([tensor.size for tensor in tensors])):
        tensor.set_value(part.reshape(tensor.shape).astype(tensor.dtype))


def _buckets(tensors):
    bucket, size = [], 0
    for tensor in tensors:
        if bucket and size + tensor.size > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.size
    if bucket:
        yield bucket
