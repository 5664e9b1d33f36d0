"""A job: one request on its way through the engine, and how its owner follows it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..utils.errors import PPSD3Error

if TYPE_CHECKING:
    from PIL import Image

    from .requests import DrawRequest


class QueueFull(PPSD3Error):
    """The queue is full. ``retry_after``: seconds until there should be room."""

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} pictures are waiting already. Try again in {retry_after} seconds.")
        self.retry_after = retry_after


class ShuttingDown(PPSD3Error):
    """The engine accepts nothing more, or has stopped before the job was done."""


class Cancelled(PPSD3Error):
    """The job was cancelled by its owner."""


class TimedOut(PPSD3Error):
    """The job took longer than it was given."""


@dataclasses.dataclass(eq=False)
class Row:
    """One picture of a job."""

    job: Job
    index: int
    state: str = "waiting"
    step: int = 0


class Job:
    """One request that was accepted. Every method may be called from any thread.

    Attributes:
        id: unique.
        request: what is drawn.
        priority: a higher one is drawn first; equal ones in their order.
        deadline: on ``time.monotonic()``.
        wants_previews: whether ``previews`` are made.
        rows: one for each picture.
        steps: denoising steps of a picture, 0 until they are known.
        pictures: what is done so far, None for the rest.
        previews: small pictures of the last step of each that is being drawn, None for the rest.
        future: of the list of pictures; for ``asyncio.wrap_future``.
        accepted, began, ended: on ``time.monotonic()``, or None.
    """

    def __init__(self, request: DrawRequest, priority: int, seconds: float, wants_previews: bool):
        self.id = uuid.uuid4().hex
        self.request, self.priority, self.wants_previews = request, priority, wants_previews
        self.accepted = time.monotonic()
        self.began: float | None = None
        self.ended: float | None = None
        self.deadline = self.accepted + seconds
        self.seconds = seconds
        self.rows = [Row(self, index) for index in range(len(request.seeds))]
        self.steps = 0
        self.pictures: list[Image.Image | None] = [None] * len(self.rows)
        self.previews: list[Image.Image | None] = [None] * len(self.rows)
        self.future: concurrent.futures.Future[list[Image.Image]] = concurrent.futures.Future()
        self._turn = threading.Condition()
        self._version = 0
        self._listeners: list[Callable[[Job], Any]] = []

    @property
    def over(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.future.done()

    @property
    def state(self) -> str:
        """One of "waiting", "drawing", "done", "failed" and "cancelled"."""
        if self.future.done():
            error = Cancelled() if self.future.cancelled() else self.future.exception()
            return "done" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed"
        return "waiting" if self.began is None else "drawing"

    @property
    def progress(self) -> float:
        """0 to 1, the part of all steps that is done."""
        if self.over:
            return 1.0
        parts = (row.step / self.steps if self.steps else 0.0 for row in self.rows)
        return sum(parts) / len(self.rows)

    def result(self, timeout: float | None = None) -> list[Image.Image]:
        """Waits for the pictures.

        Raises:
            Cancelled, TimedOut, ShuttingDown: it was stopped.
            PPSD3Error: what the pipeline raised.
            concurrent.futures.TimeoutError: ``timeout`` seconds have passed; the job goes on.
        """
        return self.future.result(timeout)

    def cancel(self) -> bool:
        """Stops it: at once while it waits, after the present step while it is drawn. False if it is over."""
        return self.stop(Cancelled("The job was cancelled."))

    def listen(self, listener: Callable[[Job], Any]) -> None:
        """Calls ``listener(job)`` after each change: a step, a picture, the end. It runs in the thread that made the
        change, and must be quick."""
        self._listeners.append(listener)

    def changes(self, interval: float = 1.0) -> Iterator[Job]:
        """Yields itself now, after each change, and at least every ``interval`` seconds until it is over: for a page
        that shows progress. Closing the iterator does not cancel it."""
        over = False
        while not over:
            seen, over = self._version, self.over
            yield self
            with self._turn:
                if self._version == seen and not over:
                    self._turn.wait(interval)

    def stop(self, error: PPSD3Error | Exception) -> bool:
        """Ends it with ``error``; False if it is over already."""
        return self._end(lambda: self.future.set_exception(error))

    def step_done(self, row: Row, step: int, steps: int, preview: Image.Image | None) -> None:
        """For the engine: ``step`` of ``steps`` of a picture is done."""
        row.step, self.steps = step, steps
        if preview is not None:
            self.previews[row.index] = preview

    def drawn(self, row: Row, picture: Image.Image) -> None:
        """For the engine: a picture is done, and with the last one the job."""
        row.state, row.step = "done", self.steps
        self.pictures[row.index] = picture
        if all(each.state == "done" for each in self.rows):
            self._end(lambda: self.future.set_result([p for p in self.pictures if p is not None]))
        else:
            self.changed()

    def changed(self) -> None:
        """For the engine: tells whoever follows."""
        with self._turn:
            self._version += 1
            self._turn.notify_all()
        for listener in list(self._listeners):
            listener(self)

    def _end(self, settle):
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            self.ended = self.ended or time.monotonic()
            settle()
            self.changed()
            return True
        return False
