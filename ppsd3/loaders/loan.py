"""Weights on loan: copied to the device that computes for as long as they are used, and at home in memory otherwise."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

import paddle
from paddle import nn

from ..ops.adapted import alias, set_aside
from ..serialization.tensors import put
from ..utils.paddle_internals import Place, copy_to, in_pinned_memory, place_of


class Loan:
    """Tensors that are copied to a device for a while, and afterwards have again the memory that they had; that of
    another device is copied to the computer's, so that nothing stays there.

    Several users may have them there: the first to begin brings them, the last to end takes them back. Whatever
    interrupts either, the next call completes it.

    Args:
        tensors: parameters and buffers, nowhere changed meanwhile.
        place: of the copies.
    """

    def __init__(self, tensors: Sequence[paddle.Tensor], place: Place) -> None:
        self.tensors, self.place = tensors, place
        self._homes: list[paddle.Tensor] = []
        self.users: set[object] = set()
        self._lock = threading.Lock()

    def begin(self, user: object = None, blocking: bool = True) -> None:
        """Brings the tensors, unless another user has.

        Args:
            user: who has them until it calls :meth:`end`.
            blocking: whether the copies are complete on return, or in the order of the device's present stream.
        """
        with self._lock, paddle.no_grad():
            if not self.users:
                self._take_back()
                try:
                    for tensor in self.tensors:
                        self._bring(tensor, blocking)
                except BaseException:
                    self._take_back()
                    raise
            self.users.add(user)

    def _bring(self, tensor, blocking):
        home = _in_memory(tensor)
        self._homes.append(home)
        put(tensor, copy_to(home, self.place, blocking))

    def end(self, user: object = None) -> None:
        """Takes the tensors back, unless another user has them."""
        with self._lock:
            self.users.discard(user)
            if not self.users:
                self._take_back()

    def end_all(self) -> None:
        """Takes the tensors back, whoever has not called :meth:`end`."""
        with self._lock:
            self.users.clear()
            self._take_back()

    def _take_back(self):
        while self._homes:
            put(self.tensors[len(self._homes) - 1], self._homes[-1])
            self._homes.pop()


@contextlib.contextmanager
def on_loan(tensors: Sequence[paddle.Tensor], place: Place) -> Iterator[None]:
    """Within the block, ``tensors`` are on ``place``."""
    loan = Loan(tensors, place)
    try:
        loan.begin()
        yield
    finally:
        loan.end()


def bring_home(network: nn.Layer, pinned: bool = False) -> None:
    """Moves all that ``network`` holds to the computer's memory, one tensor at a time; in memory nothing is copied.

    ``pinned`` copies it to page-locked memory, from which a GPU reads while it computes.
    """
    with paddle.no_grad():
        for tensor in [*tensors_of(network, include_sublayers=True), *set_aside(network)]:
            if pinned or not tensor.place.is_cpu_place():
                put(tensor, in_pinned_memory(tensor) if pinned else _in_memory(tensor))


def _in_memory(tensor):
    """A tensor with the memory of ``tensor``, or with a copy of it if it is a device's."""
    if not tensor.place.is_cpu_place():
        return copy_to(tensor.detach(), place_of("cpu"))
    return alias(tensor)


def tensors_of(layer: nn.Layer, include_sublayers: bool) -> list[paddle.Tensor]:
    """Parameters and buffers, each once."""
    found = [
        *layer.parameters(include_sublayers=include_sublayers),
        *layer.buffers(include_sublayers=include_sublayers),
    ]
    return list({id(tensor): tensor for tensor in found}.values())
