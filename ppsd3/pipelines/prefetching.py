"""Weights of the next layers on their way to a GPU while the present ones compute."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator, Sequence

import paddle

from ..loaders.loan import Loan
from ..utils.paddle_internals import Place


class Prefetcher:
    """Copies what is called next on a second stream; what that is, it has seen the last time.

    Neither stream reuses memory that the other may still work with: before the second copies, it waits for what the
    first was asked to compute until then, which is all that used the memory that is free by now; and the first waits
    for a copy before it uses or drops it.

    Args:
        place: of a GPU.
    """

    def __init__(self, place: Place) -> None:
        self._device = f"gpu:{place.gpu_device_id()}"
        self._stream = paddle.device.Stream(self._device)
        self._next: dict[Hashable, tuple[Hashable, Sequence[Loan]]] = {}  # part -> the one that was called after it
        self._thread = _Thread()

    @contextlib.contextmanager
    def having(self, part: Hashable, loans: Sequence[Loan]) -> Iterator[None]:
        """Within the block, what ``part`` holds is on the GPU, and what comes after it on its way there."""
        mine, user = self._thread, object()
        outer, mine.inside = mine.inside, True
        try:
            _begin(loans, user)
            if not outer:
                paddle.device.current_stream(self._device).wait_stream(self._stream)  # whoever has had them copied
                self._next[mine.last] = part, loans
                mine.last = part
                self._drop()
                self._fetch(part)
            yield
        finally:
            mine.inside = outer
            _end(loans, user)

    def _fetch(self, part):
        following, loans = self._next.get(part, (part, ()))
        if following is part:
            return
        self._stream.wait_stream(paddle.device.current_stream(self._device))
        self._thread.fetched = loans
        with paddle.device.stream_guard(self._stream):
            _begin(loans, self._thread.token)

    def _drop(self):
        loans, self._thread.fetched = self._thread.fetched, ()
        _end(loans, self._thread.token)

    def forget(self) -> None:
        """Drops what this thread has not come to call."""
        paddle.device.current_stream(self._device).wait_stream(self._stream)
        self._drop()
        self._thread.last = None


class _Thread(threading.local):
    """What is going on in the present thread."""

    def __init__(self) -> None:
        self.token, self.inside = object(), False
        self.last: Hashable = None  # the part that was called
        self.fetched: Sequence[Loan] = ()


def _begin(loans, user):
    for loan in loans:
        loan.begin(user, blocking=False)


def _end(loans, user):
    for loan in loans:
        loan.end(user)
