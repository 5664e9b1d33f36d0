"""What a run says of itself: a line of JSON per interval, a progress bar, and VisualDL's files."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils import logging
from ..utils.errors import InputError
from ..utils.files import append_text, atomic_write
from ..utils.json_files import parse_json_object

if TYPE_CHECKING:
    from tqdm import tqdm

T_BINS = 10  # of "loss_t": equal parts of (0, 1)


class TrainingLog:
    """Averages over intervals, written to ``log.jsonl`` in ``directory``; a context, within which a terminal has a bar.

    The bar has loss, rate and time left. Elsewhere than on a terminal there is a line of text per interval instead.

    Args:
        directory: of the run.
        every: steps of an interval.
        max_steps: for the progress bar, and the time left.
        report_to: "visualdl" writes the numbers for VisualDL too, to ``directory/visualdl``; None does not.
        silent: writes nothing, as all ranks but the first.

    Raises:
        InputError: ``report_to`` is unknown, or VisualDL is not installed.
    """

    def __init__(
        self, directory: str, every: int, max_steps: int, report_to: str | None = None, silent: bool = False
    ) -> None:
        self.path: str = os.path.join(directory, "log.jsonl")
        self.every: int = every
        self.max_steps: int = max_steps
        self.silent: bool = silent
        self.history: list[dict[str, Any]] = []  # of the steps since the last line
        self._clock: tuple[int, float] | None = None
        self._board = None if silent else _visualdl(report_to, directory)
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> TrainingLog:
        if not self.silent and logging.progress_bars and sys.stderr.isatty():
            from tqdm.auto import tqdm

            done = 0 if self._clock is None else self._clock[0]
            self._bar = tqdm(total=self.max_steps, initial=done, unit="step", dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def begin(self, step: int, history: Sequence[Mapping[str, Any]] = ()) -> None:
        """Starts at ``step``, in an interval of which ``history`` is known.

        What an interrupted run wrote of later steps, or half of, goes.
        """
        self.history = [dict(metrics) for metrics in history]
        self._clock = step, time.monotonic()
        if self.silent or not os.path.exists(self.path):
            return
        kept = [entry for entry in read_log(self.path) if entry["step"] <= step]
        with atomic_write(self.path) as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in kept).encode())

    def add(self, step: int, learning_rate: float, metrics: Mapping[str, Any]) -> None:
        """Notes one step: numbers, and "t" and "errors" [B] of the samples; writes when an interval is full."""
        self.history.append(dict(metrics))
        if self._bar is not None:
            shown = {key: float(metrics[key]) for key in ("loss", "skipped") if key in metrics}
            self._bar.set_postfix({**shown, "lr": learning_rate}, refresh=False)
            self._bar.update()
        if step % self.every == 0 or step == self.max_steps:
            self._write(step, learning_rate)

    def note(self, step: int, **values: Any) -> None:
        """Writes a line of its own, e.g. of a validation."""
        self._append({"step": step, **values})

    def _write(self, step, learning_rate):
        assert self._clock is not None
        now = time.monotonic()
        rate = (step - self._clock[0]) / max(now - self._clock[1], 1e-9)
        entry = {"step": step, "lr": learning_rate, "steps_per_second": rate, **_means(self.history)}
        self.history, self._clock = [], (step, now)
        self._append(entry)
        if not self.silent and self._bar is None:
            shown = "  ".join(f"{key} {value:.4g}" for key, value in entry.items() if isinstance(value, float))
            left = (self.max_steps - step) / max(rate, 1e-9)
            print(f"step {step}/{self.max_steps}  {shown}  left {_duration(left)}", file=sys.stderr, flush=True)

    def _append(self, entry):
        if self.silent:
            return
        append_text(self.path, json.dumps(_rounded(entry)) + "\n")
        if self._board is not None:
            for key, value in entry.items():
                if isinstance(value, float):
                    self._board.add_scalar(key, value, entry["step"])


def read_log(path: str) -> list[dict[str, Any]]:
    """The entries of a ``log.jsonl``; a last line that was cut off is left out."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    return [parse_json_object(line, f"{path}, line {i}") for i, line in enumerate(lines[:-1], 1)]


def _means(history):
    """Means of the numbers, and of "errors" by bins of "t" as the list "loss_t" (null for a bin without samples)."""
    names = {name for metrics in history for name in metrics if name not in ("t", "errors")}
    means: dict[str, Any] = {name: float(np.mean([m[name] for m in history if name in m])) for name in sorted(names)}
    timed = [m for m in history if "errors" in m]
    if timed:
        t, errors = (np.concatenate([np.ravel(m[key]) for m in timed]) for key in ("t", "errors"))
        bins = np.minimum((t * T_BINS).astype(int), T_BINS - 1)
        means["loss_t"] = [float(errors[bins == i].mean()) if (bins == i).any() else None for i in range(T_BINS)]
    return means


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _visualdl(report_to, directory):
    if report_to is None:
        return None
    if report_to != "visualdl":
        raise InputError(f"report_to={report_to!r} is unknown: use 'visualdl', or None for log.jsonl alone.")
    try:
        from visualdl import LogWriter
    except ImportError as error:
        raise InputError("report_to='visualdl' needs VisualDL: pip install 'ppsd3[train]'.") from error
    return LogWriter(logdir=os.path.join(directory, "visualdl"))
