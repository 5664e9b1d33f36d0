"""The process of one side: reads commands as lines of JSON from standard input and answers each with one line.

Commands: ``{"do": "prepare bench"}``, ``{"do": "prepare"}``, ``{"do": "setup"}``, ``{"do": "warm up"}`` and
``{"do": "run", "save": path or null}``. What libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .benches import Bench
    from .sides.base import Side


def main(specification: Mapping[str, Any]) -> None:
    """Answers until standard input ends.

    Args:
        specification: ``bench`` (name), ``settings`` (of the bench), ``side`` (name, or None for commands about
            the bench) and ``workspace``.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from .benches import BY_NAME
    from .sides.base import Side

    bench = BY_NAME[specification["bench"]](**specification["settings"])
    side = bench.side(specification["side"]) if specification["side"] else Side("", bench)
    worker = Worker(bench, side, specification["workspace"])
    for line in sys.stdin:
        try:
            answer = worker.answer(**json.loads(line))
        except Exception as error:  # noqa: BLE001, whatever fails is the answer
            answer = {"error": f"{type(error).__name__}: {error}"}
            import traceback

            traceback.print_exc()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Worker:
    """Runs the commands."""

    def __init__(self, bench: Bench, side: Side, workspace: str) -> None:
        self.bench: Bench = bench
        self.side: Side = side
        self.workspace: str = workspace

    def answer(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Runs the command ``do`` and returns its answer."""
        return getattr(self, do.replace(" ", "_"))(**arguments) or {}

    def prepare_bench(self) -> None:
        """Checkpoints."""
        self.bench.prepare(self.workspace)

    def prepare(self) -> None:
        """What the side does once."""
        self.side.prepare(self.workspace)

    def setup(self) -> dict[str, float]:
        """Loading."""
        start = time.perf_counter()
        self.side.setup(self.workspace)
        return {"seconds": time.perf_counter() - start}

    def warm_up(self) -> None:
        """The untimed run."""
        self.side.warm_up()

    def run(self, save: str | None = None) -> dict[str, float]:
        """The timed run; its output is compared later, if it is saved."""
        gc.collect()
        start = time.perf_counter()
        result = self.side.run()
        seconds, peak = time.perf_counter() - start, self.side.peak()
        if save:
            import numpy as np

            arrays: dict[str, Any] = {name: self.bench.sample(array) for name, array in self.side.arrays(result)}
            np.savez(save, **arrays)
        return {"seconds": seconds, "peak": peak}
