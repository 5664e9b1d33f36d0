"""Runs a bench: each side has its own process, and they run in turn.

Interleaving (A B C A B C ...) matters more than the number of runs: the speed of a shared machine drifts by tens of
percent within minutes, and sides that are measured one after the other are compared on different machines.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from typing import Any, Callable

import numpy as np

from .benches import Bench
from .results import Measurement, SideResult
from .sides.base import Side

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# A rival's process must have neither Paddle, which `import ppsd3` loads, nor its settings.
_BARE = """
import sys, types
sys.modules["ppsd3"] = types.ModuleType("ppsd3")
sys.modules["ppsd3"].__path__ = [sys.argv[2]]
"""
_START = """
import json, sys
from ppsd3.bench.worker import main
main(json.loads(sys.argv[1]))
"""

_PAUSE = 0.3  # seconds after a run, in which threads that wait for more work go to sleep
_MEMORY_PER_WEIGHT = 2  # bytes of a side's process for each byte of its checkpoint: a copy in its own layout
_MEMORY_BESIDE = 500_000_000  # bytes of a process for libraries and activations


class SideError(Exception):
    """A side failed; its process may have ended."""


class Worker:
    """A process for one side of ``bench``, or with ``side=None`` for the bench's own preparation."""

    def __init__(self, bench: Bench, side: Side | None, workspace: str) -> None:
        specification = {
            "bench": bench.name,
            "settings": bench.settings(),
            "side": side.name if side else None,
            "workspace": workspace,
        }
        code = (_BARE if side and side.bare else "") + _START
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, json.dumps(specification), _PACKAGE],
            env=_environment(side.threads if side else bench.threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def __call__(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Runs a command of :mod:`.worker` and returns its answer.

        Raises:
            SideError: the side raised an error, or its process ended.
        """
        try:
            self._stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._stdin.flush()
            line = self._stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            killed = " (killed: out of memory?)" if code == -9 else ""
            raise SideError(f"{do}: the process ended with exit code {code}{killed}. {self.log()}".strip())
        answer = json.loads(line)
        if "error" in answer:
            raise SideError(f"{do}: {answer['error']}")
        return answer

    def log(self) -> str:
        """The end of what the process wrote to standard error."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 600))
        return self._log.read().decode(errors="replace").strip()

    def close(self) -> None:
        """Ends the process."""
        self._stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()
        self._log.close()


def _environment(threads):
    """This process's variables without what ``import ppsd3`` set in it, and the number of threads."""
    environment = {name: value for name, value in os.environ.items() if name != "MKL_DEBUG_CPU_TYPE"}
    root = os.path.dirname(_PACKAGE)
    path = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return {**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def run_bench(
    bench: Bench,
    workspace: str,
    names: Collection[str] | None = None,
    repeats: int | None = None,
    progress: Callable[[str], object] = lambda text: None,
    start: Callable[..., Any] = Worker,
) -> Measurement:
    """Measures the sides of ``bench``.

    Args:
        workspace: directory for checkpoints and outputs, which later benches use again.
        names: of the sides to run. Default: all.
        repeats: timed runs of each. Default: the bench's.
        progress: called with a line about each step.
        start: makes a worker.

    Returns:
        The measurement, including sides that are not installed or failed, with the reason.

    Raises:
        SideError: the checkpoints cannot be made.
    """
    sides = [side for side in bench.sides() if names is None or side.name in names] + bench.rooflines()
    results = [SideResult.of(side) for side in sides]
    progress(f"{bench.title}: preparing")
    _alone(start(bench, None, workspace), "prepare bench")
    running = []
    for side, result in zip(sides, results):
        result.absent = side.missing()
        if not result.absent and type(side).prepare is not Side.prepare:  # which does nothing
            progress(f"{bench.title}: preparing {side.name}")
            try:
                _alone(start(bench, side, workspace), "prepare")
            except SideError as error:
                result.failure = str(error)
        if not (result.absent or result.failure):
            running.append((side, result))
    outputs = tempfile.mkdtemp(prefix="outputs-", dir=workspace)
    try:
        fresh = bench.always_fresh or not _fit(bench, workspace, [side for side, _ in running])
        rounds = _Rounds(bench, lambda side: start(bench, side, workspace), fresh, outputs, progress)
        rounds.measure(running, repeats or bench.repeats)
        _compare(results, outputs)
    finally:
        shutil.rmtree(outputs)
    return Measurement.of(bench, results)


def _alone(worker, command):
    try:
        worker(command)
    finally:
        worker.close()


def _fit(bench, workspace, sides):
    """Whether the machine has memory for all sides at once."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return True
    models = sum(not side.roofline for side in sides)
    return models * _MEMORY_PER_WEIGHT * bench.bytes_of_weights(workspace) + len(sides) * _MEMORY_BESIDE < free


class _Rounds:
    """Rounds in which each side runs once.

    Args:
        start: ``start(side)`` -> worker.
        fresh: each run has a process of its own; else a side keeps the one it has.
        outputs: directory for the outputs of the first runs.
    """

    def __init__(
        self, bench: Bench, start: Callable[[Side], Any], fresh: bool, outputs: str, progress: Callable[[str], object]
    ) -> None:
        self.bench, self.start, self.fresh, self.outputs, self.progress = bench, start, fresh, outputs, progress
        self.workers = {}

    def measure(self, running: list[tuple[Side, SideResult]], repeats: int) -> None:
        """Fills in the results of ``running``."""
        try:
            if not self.fresh:  # all before the first round: rounds are then of runs alone
                for side, result in running:
                    self._attempt(self._load, side, result)
            for number in range(repeats):
                for side, result in running:
                    self._attempt(self._run, side, result, number)
                    time.sleep(0 if self.bench.tiny else _PAUSE)
        finally:
            for worker in self.workers.values():
                worker.close()

    def _attempt(self, action, side, result, *arguments):
        """Runs ``action`` unless the side has failed; a failure ends only this side."""
        if result.failure:
            return
        try:
            action(side, result, *arguments)
        except SideError as error:
            result.failure = str(error)
        if (self.fresh or result.failure) and side.name in self.workers:
            self.workers.pop(side.name).close()

    def _load(self, side, result):
        self.progress(f"{self.bench.title}: {side.name} loads")
        worker = self.workers[side.name] = self.start(side)
        result.setup_seconds = worker("setup")["seconds"]
        if not self.bench.always_fresh:
            worker("warm up")

    def _run(self, side, result, number):
        if side.name not in self.workers:
            self._load(side, result)
        save = None if number or side.roofline else os.path.join(self.outputs, f"{side.name}.npz")
        answer = self.workers[side.name]("run", save=save)
        result.seconds.append(answer["seconds"])
        result.peak = max(result.peak or 0, answer["peak"])
        self.progress(f"{self.bench.title}: round {number + 1}, {side.name} {answer['seconds']:.3f} s")


def _compare(results, outputs):
    """Fills in the errors to the output of the first side that has one."""
    reference = None
    for result in results:
        file = os.path.join(outputs, f"{result.name}.npz")
        if result.failure or not os.path.exists(file):
            continue
        with np.load(file) as arrays:
            if reference is None:
                result.is_reference = True
                reference = {name: arrays[name] for name in arrays.files}
            else:
                result.errors = {name: relative_error(arrays, name, value) for name, value in reference.items()}


def relative_error(arrays: Mapping[str, np.ndarray], name: str, reference: np.ndarray) -> float:
    """Norm of the difference over the norm of ``reference``; infinite if ``name`` is missing or has another shape."""
    if name not in arrays or arrays[name].shape != reference.shape or not np.isfinite(arrays[name]).all():
        return float("inf")
    reference = reference.astype(np.float64)
    return float(np.linalg.norm(arrays[name] - reference) / max(np.linalg.norm(reference), 1e-30))
