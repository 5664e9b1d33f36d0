"""The process of one side: takes commands as lines of JSON on standard input and answers each with one line.

Commands: ``{"do": "prepare bench"}``, ``{"do": "prepare"}``, ``{"do": "setup"}``, ``{"do": "warm up"}`` and
``{"do": "run", "save": path or null}``. What libraries print goes to standard error.
"""

import gc
import json
import os
import sys
import time


def main(specification):
    """Answers until standard input ends.

    Args:
        specification (dict): ``bench`` (name), ``settings`` (of the bench), ``side`` (name, or None for commands about
            the bench) and ``workspace``.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from .benches import BY_NAME

    bench = BY_NAME[specification["bench"]](**specification["settings"])
    side = bench.side(specification["side"]) if specification["side"] else None
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
    """What the commands do."""

    def __init__(self, bench, side, workspace):
        self.bench, self.side, self.workspace = bench, side, workspace

    def answer(self, do, **arguments):
        """Carries out the command ``do``. Returns a dict for JSON."""
        return getattr(self, do.replace(" ", "_"))(**arguments) or {}

    def prepare_bench(self):
        """Checkpoints."""
        self.bench.prepare(self.workspace)

    def prepare(self):
        """What the side does once."""
        self.side.prepare(self.workspace)

    def setup(self):
        """Loading."""
        start = time.perf_counter()
        self.side.setup(self.workspace)
        return {"seconds": time.perf_counter() - start}

    def warm_up(self):
        """The untimed run."""
        self.side.warm_up()

    def run(self, save=None):
        """The timed run; its output is compared later, if it is saved."""
        gc.collect()
        start = time.perf_counter()
        result = self.side.run()
        seconds, peak = time.perf_counter() - start, self.side.peak()
        if save:
            import numpy as np

            arrays = {name: self.bench.sample(array) for name, array in self.side.arrays(result)}
            np.savez(save, **arrays)
        return {"seconds": seconds, "peak": peak}
