"""Starts workers, watches their time, and collects the verdicts."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time

CPU_SECONDS = 5  # that a case may take
WALL_SECONDS = 120  # for a case that waits; other programs may hold the processor
GOOD = ("accepted", "refused")
ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = pathlib.Path(os.environ.get("PPSD3_FUZZ_PACKAGE", ROOT))  # the tree whose ppsd3 is tried
_TICK = os.sysconf("SC_CLK_TCK")


class Worker:
    """A warm process that runs cases; another one takes its place when it dies.

    Args:
        cpu_seconds: that a case may take.
    """

    def __init__(self, cpu_seconds: float = CPU_SECONDS) -> None:
        self._process, self._cpu_seconds = None, cpu_seconds

    def run(self, kind, seed, first, stop):
        """Yields the verdict on each case of ``range(first, stop)``."""
        while first < stop:
            if self._process is None:
                self._start()
            self._process.stdin.write(f"{kind} {seed} {first} {stop}\n".encode())
            self._process.stdin.flush()
            answer, ready = self._answer(is_case=False), False
            while answer is not None and first < stop:
                ready = True
                answer = self._answer()
                if answer is not None:
                    yield answer
                    first = answer["case"] + 1
            if first < stop:  # it died
                if not ready:
                    raise RuntimeError(f"the worker cannot make its inputs:\n{self._last_words()}")
                yield {"case": first, **self._autopsy()}
                first += 1

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._stderr.close()
            self._home.cleanup()
            self._process = None

    def _start(self):
        self._home = tempfile.TemporaryDirectory(prefix="ppsd3-fuzz-")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115, closed with the worker
        paths = [str(PACKAGE), str(ROOT / "tests")]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "fuzz.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=self._home.name,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        self._hung, self._read = False, b""

    def _answer(self, is_case=True):
        """The next line of the worker, None once it has ended or has taken too long."""
        began, cpu = time.monotonic(), self._cpu()
        while True:
            line, newline, rest = self._read.partition(b"\n")
            if newline:
                self._read = rest
                return json.loads(line)
            if select.select([self._process.stdout], [], [], 0.2)[0]:
                data = os.read(self._process.stdout.fileno(), 1 << 16)
                if not data:
                    return None
                self._read += data
                continue
            if is_case and (self._cpu() - cpu > self._cpu_seconds or time.monotonic() - began > WALL_SECONDS):
                self._hung = True
                self._process.send_signal(signal.SIGUSR1)  # it says where it is
                time.sleep(0.5)
                self._process.kill()

    def _cpu(self):
        """Seconds of processor that the worker has had."""
        try:
            fields = pathlib.Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / _TICK

    def _autopsy(self):
        code = self._process.wait()
        words = self._last_words()
        self.close()
        if self._hung:
            return {
                "verdict": "hang",
                "error": f"over {self._cpu_seconds} s",
                "message": words,
                "where": _innermost(words),
            }
        if code == 1:
            raise RuntimeError(f"the worker failed by itself:\n{words}")
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return {"verdict": "crash", "error": name, "message": words, "where": _innermost(words)}

    def _last_words(self):
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-3000:]


def _innermost(words):
    """The innermost line of the package in a traceback of faulthandler."""
    for line in words.splitlines():
        if 'File "' in line and "/ppsd3/" in line:
            return line.rpartition("/ppsd3/")[2].replace('", line ', ":").replace(" in ", " ")
    return ""


def fuzz(kind, seed="0", cases=300, first=0, worker=None):
    """Counter of the verdicts on ``cases`` cases, and the faults among them (dicts)."""
    counts, faults = collections.Counter(), []
    own = worker or Worker()
    try:
        for verdict in own.run(kind, seed, first, first + cases):
            counts[verdict["verdict"]] += 1
            if verdict["verdict"] not in GOOD:
                faults.append({"kind": kind, "seed": seed, **verdict})
    finally:
        if worker is None:
            own.close()
    return counts, faults


def describe(faults, most=50):
    """A paragraph on each cause: how many cases, what happened, and the command that shows one of them."""
    groups = collections.defaultdict(list)
    for fault in faults:
        groups[(fault["kind"], fault["verdict"], fault["error"], fault["where"])].append(fault)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return "\n\n".join(
        f"{len(some)} x {verdict}: {error} at {where or '?'}\n  {some[0].get('changed', '')}\n"
        f"  {some[0]['message'][:300]}\n  python -m tests.fuzz {kind} {some[0]['seed']} {some[0]['case']}"
        for (kind, verdict, error, where), some in ordered[:most]
    )
