"""Order, failures and comparison, with workers that are functions; and real processes once."""

import json

import numpy as np
import pytest

from ppsd3.bench import runner
from ppsd3.bench.benches import LoadBench, StepBench
from ppsd3.bench.runner import SideError, run_bench
from ppsd3.bench.sides.base import Side


class FakeSide(Side):
    def __init__(self, name, bench, output=1.0, seconds=1.0, ours=False, absent="", fails_at=None, **options):
        super().__init__(name, bench, **options)
        self.output, self.seconds, self.ours, self.absent, self.fails_at = output, seconds, ours, absent, fails_at

    def missing(self):
        return self.absent


class PreparedSide(FakeSide):
    def prepare(self, workspace):
        raise AssertionError("the fake worker does not call it")


class FakeBench(StepBench):
    def sides(self):
        return self.given

    def rooflines(self):
        return []


class Worker:
    """Notes what it is asked."""

    def __init__(self, started, side):
        self.started, self.side = started, side
        started.open += 1

    def __call__(self, do, save=None):
        name = self.side.name if self.side else None
        self.started.asked.append((name, do))
        if self.side and self.side.fails_at == do:
            raise SideError(f"{do}: no luck")
        if save:
            np.savez(save, velocity=np.full(3, self.side.output))
        return {"seconds": self.side.seconds if self.side else 0, "peak": 1000}

    def close(self):
        self.started.open -= 1


class Started:
    """Starts them."""

    def __init__(self):
        self.asked, self.open = [], 0

    def __call__(self, bench, side, workspace):
        return Worker(self, side)

    def runs(self):
        return [name for name, do in self.asked if do == "run"]


@pytest.fixture
def bench(monkeypatch):
    bench = FakeBench(64, 2, threads=2, tiny=True)
    monkeypatch.setattr(FakeBench, "bytes_of_weights", lambda self, workspace: 0)
    return bench


def measure(bench, sides, tmp_path, **options):
    bench.given, start = sides, Started()
    measurement = run_bench(bench, str(tmp_path), start=start, **options)
    assert start.open == 0
    return measurement, start


def test_sides_run_in_turn(bench, tmp_path):
    measurement, start = measure(bench, [FakeSide("a", bench), FakeSide("b", bench)], tmp_path, repeats=3)
    assert start.runs() == ["a", "b"] * 3
    assert start.asked[:5] == [(None, "prepare bench"), *[(n, do) for n in "ab" for do in ("setup", "warm up")]]
    assert [len(result.seconds) for result in measurement.results] == [3, 3]


def test_a_run_may_have_a_process_of_its_own(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_fit", lambda *arguments: False)
    _, start = measure(bench, [FakeSide("a", bench), FakeSide("b", bench)], tmp_path, repeats=2)
    assert [do for name, do in start.asked if name == "a"] == ["setup", "warm up", "run"] * 2
    assert start.runs() == ["a", "b"] * 2


def test_only_the_sides_that_were_asked_for(bench, tmp_path):
    measurement, _ = measure(bench, [FakeSide("a", bench), FakeSide("b", bench)], tmp_path, names=["b"])
    assert [result.name for result in measurement.results] == ["b"]


@pytest.mark.parametrize("command", ["prepare", "setup", "warm up", "run"])
def test_one_fails_and_the_others_go_on(bench, tmp_path, command):
    sides = [PreparedSide("a", bench, fails_at=command), FakeSide("b", bench), FakeSide("c", bench, absent="pip it")]
    measurement, start = measure(bench, sides, tmp_path, repeats=2)
    a, b, c = measurement.results
    assert a.failure == f"{command}: no luck" and not a.measured
    assert b.measured and b.is_reference and not b.failure
    assert c.absent == "pip it" and not c.measured and "c" not in start.runs()


def test_outputs_are_compared(bench, tmp_path):
    sides = [FakeSide("a", bench, 1.0), FakeSide("b", bench, 1.0001), FakeSide("c", bench, 1.2)]
    a, b, c = measure(bench, sides, tmp_path)[0].results
    assert a.is_reference and a.error is None and not a.wrong
    assert b.error == pytest.approx(1e-4) and not b.wrong
    assert c.error == pytest.approx(0.2) and c.wrong


def test_relative_error_of_what_cannot_be_compared():
    reference = np.ones(3)
    for arrays in ({}, {"x": np.ones(4)}, {"x": np.array([1, 1, np.nan])}):
        assert runner.relative_error(arrays, "x", reference) == float("inf")
    assert runner.relative_error({"x": np.zeros(3)}, "x", np.zeros(3)) == 0


def test_in_processes(tmp_path):
    """Two real sides: each in its process, with its memory."""
    (bench,) = LoadBench.make(tiny=True)
    lines = []
    measurement = run_bench(bench, str(tmp_path), ["ppsd3", "ppsd3-no-compiler"], 1, lines.append)
    for result in measurement.results:
        assert not result.failure and result.measured and result.peak > 5e7 and result.setup_seconds > 0
    assert measurement.results[1].error == 0
    assert any("round 1, ppsd3 " in line for line in lines)
    json.dumps(measurement.to_json())


def test_loading_needs_the_memory_for_it(tmp_path, monkeypatch):
    (bench,) = LoadBench.make(tiny=True)
    bench.prepare(str(tmp_path))
    bench.settle(str(tmp_path))
    monkeypatch.setattr(LoadBench, "bytes_of_weights", lambda *_: 10**18)
    with pytest.raises(RuntimeError, match="GB free"):
        bench.settle(str(tmp_path))


def test_a_process_that_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_START", "import sys; sys.exit('nothing works')")
    worker = runner.Worker(StepBench(64, 2, tiny=True), None, str(tmp_path))
    with pytest.raises(SideError, match=r"setup: the process ended with exit code 1.*nothing works"):
        worker("setup")
    worker.close()


def test_a_rivals_process_has_no_paddle(tmp_path, monkeypatch):
    code = (
        "import json, sys, ppsd3.bench.worker\nfor _ in sys.stdin: print(json.dumps(sorted(sys.modules)), flush=True)"
    )
    monkeypatch.setattr(runner, "_START", code)
    bench = StepBench(64, 2, tiny=True)
    worker = runner.Worker(bench, bench.side("diffusers"), str(tmp_path))
    modules = worker("anything")
    worker.close()
    assert "ppsd3.bench.worker" in modules and "paddle" not in modules
