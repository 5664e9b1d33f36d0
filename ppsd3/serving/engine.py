"""The engine: a bounded queue of jobs, one loaded model, and the threads that draw."""

from __future__ import annotations

import collections
import concurrent.futures
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from ..utils.device import share_cores
from ..utils.errors import InputError
from ..utils.logging import get_logger
from ..utils.random import TorchGenerator
from .jobs import Job, QueueFull, Row, ShuttingDown, TimedOut
from .models import ModelChoice, Models
from .requests import DrawRequest, Limits, call_of

if TYPE_CHECKING:
    from typing_extensions import Self

_logger = get_logger(__name__)

_SMOOTHING = 0.3  # weight of the last call in the estimate of speed
_MOST_RETRY = 600  # seconds
_USUAL_STEPS = 28  # for estimates, before a call says how many


class _Stopped(Exception):
    """Nobody waits for any of the pictures of this call any more."""


class Engine:
    """Draws what is submitted. Every method may be called from any thread.

    Each picture is the one that it is alone, to the last bit, also where several calls run at once. Pictures that one
    call draws together differ by rounding, as matrix products of other sizes are summed in another order, so that is
    not done unasked. A job that is cancelled, or out of time, is over at once; its call ends after the present step,
    unless somebody waits for another of its pictures.

    Args:
        choice: the model that requests without one get.
        limits: of each request; its ``seconds`` are those of a job.
        most_waiting: pictures that wait or are drawn; what comes on top is refused with :class:`QueueFull`.
        at_once: calls that run at once, each on its part of the CPU's cores: small pictures, which leave cores idle,
            take less time together; each call has its own activations in memory.
        most_in_call: pictures that one call draws: of requests that differ in their texts and seeds alone, or of one.
        models: what loads and holds the model.
    """

    def __init__(
        self,
        choice: ModelChoice | None = None,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        most_waiting: int = 64,
        at_once: int = 1,
        most_in_call: int = 1,
        models: Models | None = None,
    ):
        if min(most_waiting, at_once, most_in_call) < 1:
            raise InputError("`most_waiting`, `at_once` and `most_in_call` are at least 1.")
        self.choice = ModelChoice() if choice is None else choice
        self.limits, self.most_waiting = limits, most_waiting
        self.at_once, self.most_in_call = at_once, most_in_call
        self.counts: collections.Counter[str] = collections.Counter()  # jobs by how they ended; pictures, calls, steps
        self._models = Models() if models is None else models
        self._turn = threading.Condition()
        self._rows: list[Row] = []  # that wait or are drawn, in the order of their jobs
        self._loads: collections.deque[tuple[ModelChoice, concurrent.futures.Future[None]]] = collections.deque()
        self._closing = False
        self._busy = 0  # threads that draw or load
        self._present: ModelChoice | None = None  # what is loaded, or is being loaded
        self._loading = threading.Lock()
        self._speed: float | None = None  # seconds for a step of a picture, one pixel of it
        self._threads = [threading.Thread(target=self._work, name=f"ppsd3-{i}", daemon=True) for i in range(at_once)]

    # What owners do

    def start(self) -> concurrent.futures.Future[None]:
        """Starts the threads, which load the model first. The future has the error if it cannot be loaded."""
        loaded = self.load(self.choice)
        for thread in self._threads:
            thread.start()
        return loaded

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self, seconds: float = 0.0) -> None:
        """Refuses what comes from now on, gives what was accepted ``seconds`` to finish, and stops the rest after the
        present step. Returns when the threads have ended."""
        with self._turn:
            self._closing = True
            self._turn.notify_all()
            self._turn.wait_for(lambda: not self._rows, seconds)
            left = self._jobs()
        for job in left:
            job.stop(ShuttingDown("The server stopped before this was drawn. Ask again."))
        while self._loads:
            self._loads.popleft()[1].set_exception(ShuttingDown("The server stopped before the model was loaded."))
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def submit(
        self, request: DrawRequest, priority: int = 0, seconds: float | None = None, previews: bool = False
    ) -> Job:
        """Accepts a request.

        Args:
            priority: a higher one is drawn first.
            seconds: that it may take, waiting included. Default, and the most: the limits'.
            previews: whether small pictures are made at each step.

        Raises:
            QueueFull: as many pictures as may are waiting.
            ShuttingDown: the engine is closing.
        """
        most = self.limits.seconds
        job = Job(request, priority, most if seconds is None else min(seconds, most), previews)
        with self._turn:
            if self._closing:
                raise ShuttingDown("The server is shutting down and accepts nothing more. Ask another one.")
            if len(self._rows) + len(job.rows) > self.most_waiting and (self._rows or len(job.rows) > 1):
                self.counts["refused"] += 1
                if len(job.rows) > self.most_waiting:
                    raise InputError(f"{len(job.rows)} pictures are more than the whole queue of {self.most_waiting}.")
                raise QueueFull(len(self._rows), self.retry_after())
            self.counts["accepted"] += 1
            self._rows += job.rows
            self._turn.notify_all()
        job.future.add_done_callback(lambda future: self._over(job))
        return job

    def load(self, choice: ModelChoice) -> concurrent.futures.Future[None]:
        """Loads a model, also the present one anew, between two calls; then it is what requests without one get, those
        that wait included. If it cannot be loaded the future has the error, and the engine goes on with the present
        one."""
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._turn:
            self._loads.append((choice, future))
            self._turn.notify_all()
        return future

    def jobs(self) -> list[Job]:
        """Those that are not over, in the order in which they came."""
        with self._turn:
            return self._jobs()

    def interrupt(self) -> int:
        """Cancels the jobs that are drawn now, and says how many."""
        with self._turn:
            now = list({id(row.job): row.job for row in self._rows if row.state == "drawing"}.values())
        return sum(job.cancel() for job in now)

    # What is known

    @property
    def ready(self) -> bool:
        """Whether a model is loaded and requests are accepted."""
        return not self._closing and self._models.choice is not None

    @property
    def closing(self) -> bool:
        """Whether nothing more is accepted."""
        return self._closing

    @property
    def waiting(self) -> int:
        """Pictures that wait or are drawn."""
        return len(self._rows)

    def retry_after(self) -> int:
        """Whole seconds, at least 1, until what is in the queue now should be half done."""
        with self._turn:
            work = sum(self._work_of(row) for row in self._rows)
        return min(_MOST_RETRY, max(1, math.ceil(work * (self._speed or 0.0) / 2 / self.at_once)))

    def seconds_left(self, job: Job) -> float | None:
        """An estimate from the calls so far: until ``job`` is done; None before the first."""
        if self._speed is None:
            return None
        with self._turn:
            ordered = sorted(self._rows, key=_order)
            last = max((i for i, row in enumerate(ordered) if row.job is job), default=0)
            return self._speed * sum(self._work_of(row) for row in ordered[: last + 1]) / min(self.at_once, last + 1)

    # The threads

    def _work(self):
        share_cores(self.at_once)
        while (task := self._await_task()) is not None:
            task()
            with self._turn:
                self._busy -= 1
                self._turn.notify_all()
            self._expire()

    def _await_task(self):
        """What to do next, once there is something; None when all is done."""
        with self._turn:
            while (task := self._task()) is None:
                if self._closing and not self._rows and not self._loads:
                    return None
                self._turn.wait()
            self._busy += 1
            return task

    def _task(self):
        """The first thing that may begin now. Another model is loaded when no call runs."""
        if self._loads:
            if self._busy:
                return None
            choice, future = self._loads.popleft()
            self._present = choice
            return lambda: self._load(choice, future)
        waiting = sorted((row for row in self._rows if row.state == "waiting"), key=_order)
        if not waiting:
            return None
        choice = self._choice_of(waiting[0])
        if choice != self._present and self._busy:
            return None
        self._present = choice
        key = self._key_of(waiting[0])
        # the others with its key, whichever job they are of: they cost the first one little
        rows = [row for row in waiting if self._key_of(row) == key][: self._most_of(waiting[0])]
        for row in rows:
            row.state, row.job.began = "drawing", row.job.began or time.monotonic()
        return lambda: (self._draw(rows, choice), self._forget(rows))

    def _choice_of(self, row):
        return row.job.request.choice or self.choice

    def _key_of(self, row):
        return row.job.request.key(self._choice_of(row))

    def _most_of(self, row):
        return self.most_in_call if row.job.request.task == "generate" else 1

    def _draw(self, rows, choice):
        requests = [row.job.request for row in rows]
        task, scheduler = requests[0].task, requests[0].scheduler
        began, watch = time.monotonic(), _Watch(self, rows)
        try:
            with self._loading:
                pipe = self._models.pipeline(choice, task, scheduler)
                if any(row.job.wants_previews for row in rows):
                    watch.preview = self._models.preview
            call = call_of(requests)
            seeds = [row.job.request.seeds[row.index] for row in rows]
            began = time.monotonic()
            generators = [TorchGenerator(seed) for seed in seeds]
            pictures = pipe(**call, generator=generators, callback_on_step_end=watch).images
        except _Stopped:
            return
        except Exception as error:  # noqa: BLE001 (whatever it is, the job has it, and the thread goes on)
            jobs = list({id(row.job): row.job for row in rows}.values())
            if len(jobs) == 1:
                _logger.warning("A picture was not drawn: %s.", type(error).__name__)
                jobs[0].stop(error)
            for job in jobs if len(jobs) > 1 else ():  # one of them may be at fault, and the others not
                if not job.over:
                    self._draw([row for row in rows if row.job is job], choice)
            return
        self._learn(time.monotonic() - began, rows, pictures)
        for row, picture in zip(rows, pictures):
            row.job.drawn(row, picture)

    def _learn(self, seconds, rows, pictures):
        self.counts.update(calls=1, pictures=len(rows), steps=sum(row.job.steps for row in rows))
        units = sum(max(1, row.job.steps) * picture.width * picture.height for row, picture in zip(rows, pictures))
        new = seconds / units
        self._speed = new if self._speed is None else self._speed + _SMOOTHING * (new - self._speed)

    def _load(self, choice, future):
        try:
            with self._loading:
                self._models.forget()
                self._models.pipeline(choice, "generate")
            self.choice = choice
            future.set_result(None)
        except Exception as error:  # noqa: BLE001 (the future has it)
            _logger.warning("The model was not loaded: %s.", type(error).__name__)
            future.set_exception(error)
            if choice != self.choice:
                self._load(self.choice, concurrent.futures.Future())

    def _forget(self, rows):
        with self._turn:
            gone = {id(row) for row in rows}
            self._rows = [row for row in self._rows if id(row) not in gone]
            self._turn.notify_all()

    def _over(self, job):
        """A job ended, in whatever way: its place is free."""
        self.counts[job.state] += 1
        with self._turn:
            self._rows = [row for row in self._rows if row.job is not job]
            self._turn.notify_all()

    def _expire(self):
        now = time.monotonic()
        for job in self.jobs():
            if job.deadline <= now:
                job.stop(TimedOut(f"It took longer than {job.seconds:g} seconds. Ask for less, or when fewer do."))

    def _jobs(self):
        return list({id(row.job): row.job for row in self._rows}.values())

    def _work_of(self, row):
        arguments = row.job.request.arguments
        steps, side = row.job.steps or arguments.get("num_inference_steps", _USUAL_STEPS), self._models.side
        return (steps - row.step) * arguments.get("height", side) * arguments.get("width", side)


class _Watch:
    """The callback of a call: progress, previews, deadlines, and the end when nobody waits any more."""

    tensor_inputs = ["latents"]

    def __init__(self, engine, rows):
        self._engine, self._rows = engine, rows
        self._shown: list[Any] = [None] * len(rows)
        self.preview: Any = None
        self._show: Any = None

    def __call__(self, pipe, step, timestep, tensors):
        self._engine._expire()
        if all(row.job.over for row in self._rows):
            raise _Stopped
        if self.preview is not None:
            self._show = self._show or self.preview.callback(self._take)
            self._show(pipe, step, timestep, tensors)
        for row, picture in zip(self._rows, self._shown):
            row.job.step_done(row, step + 1, pipe.num_timesteps, picture if row.job.wants_previews else None)
        for job in {id(row.job): row.job for row in self._rows}.values():
            job.changed()
        return {}

    def _take(self, step, pictures):
        self._shown = pictures


def _order(row):
    return -row.job.priority, row.job.accepted
