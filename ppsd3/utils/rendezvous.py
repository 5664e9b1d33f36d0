"""How processes that work together wait for one another and notice that one is gone, over Paddle's own store.

gloo cannot: a collective fails on a living rank that comes 30 seconds late, with no way to set another time, and while
it waits no signal is handled. The store keeps counters, in the process of the first rank. Each operation takes 0.05 s.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time

from .errors import RankLostError
from .paddle_internals import connect_store

_PREFIX = "ppsd3/"
_PULSE = 3.0  # seconds between two signs of life
_PATIENCE = 30.0  # seconds without one, after which a process is lost
_FAREWELL = 5.0  # seconds in which those that have met leave
_FIRST = "The first process, which the others ask, has ended"
_GRACE = 15.0  # seconds for the main thread to come to an exchange and raise the error itself


class Rendezvous:
    """The store, seen from the process ``rank`` of ``world``.

    A thread counts up this process's sign of life and watches those of the others. When one is missing, the next
    :meth:`meet` raises an error; a main thread that is long at work is ended by SIGTERM.

    Attributes:
        lost: what happened, once a process is lost.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank: int = rank
        self.world: int = world
        self.lost: str | None = None
        self._store = connect_store()
        self._meetings = 0
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._live, name="ppsd3-rendezvous", daemon=True)
        self._thread.start()
        atexit.register(self.leave)

    def meet(self) -> None:
        """Returns when all processes have come here as often as this one.

        Raises:
            RankLostError: one has ended or does not answer.
        """
        self._meetings += 1
        pause = 0.0
        try:
            come = self._store.add(f"{_PREFIX}meetings", 1)
            while come < self.world * self._meetings:
                has_left = self._store.add(f"{_PREFIX}left", 0) > 0
                come = self._store.add(f"{_PREFIX}meetings", 0)  # after `left`: who has left may have come here before
                if come >= self.world * self._meetings:
                    break
                if self.lost is None and has_left:
                    self.lost = "Another process has ended before its work was done"
                if self.lost is not None:
                    raise self.error()
                time.sleep(pause)
                pause = min(1.0, pause + 0.05)
        except (RuntimeError, ValueError, OSError) as error:
            raise error if isinstance(error, RankLostError) else self.error() from error

    def error(self, cause: Exception | None = None) -> RankLostError:
        """What to raise when a process is lost: ``lost``, or else what follows from a failed exchange."""
        if self.lost is None:
            late = f"Another process has ended, or comes more than 30 seconds late: {cause}"
            self.lost = _FIRST if cause is None else late
        return RankLostError(
            f"{self.lost}. This is rank {self.rank} of {self.world}; the other's output, workerlog.* under "
            "paddle.distributed.launch, says why. What was saved is whole: start again, with as many processes as you "
            "like, to go on."
        )

    def leave(self) -> None:
        """Tells the others that this process ends; the first, which holds the store, waits until they have left."""
        if self._leaving.is_set():
            return
        self._leaving.set()
        self._thread.join(_PULSE)
        try:
            left = self._store.add(f"{_PREFIX}left", 1)
            end = time.monotonic() + _FAREWELL
            while self.rank == 0 and self.lost is None and left < self.world and time.monotonic() < end:
                time.sleep(0.05)
                left = self._store.add(f"{_PREFIX}left", 0)
        except (RuntimeError, ValueError, OSError):
            pass  # the first process has ended before

    def _live(self):
        seen = {rank: (0, time.monotonic()) for rank in range(self.world) if rank != self.rank}
        try:
            store = connect_store()  # a connection is of one thread
            while not self._leaving.wait(_PULSE):
                store.add(f"{_PREFIX}life/{self.rank}", 1)
                for rank, (count, when) in seen.items():
                    now = store.add(f"{_PREFIX}life/{rank}", 0)
                    if now != count:
                        seen[rank] = now, time.monotonic()
                    elif time.monotonic() - when > _PATIENCE and not store.add(f"{_PREFIX}left", 0):
                        self.lost = f"The process of rank {rank} has not answered for {_PATIENCE:.0f} seconds"
                        break
                if self.lost is not None:
                    break
        except (RuntimeError, ValueError, OSError):
            self.lost = _FIRST
        if self.lost is not None and not self._leaving.wait(_GRACE):
            print(f"ppsd3: error: {self.error()}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
