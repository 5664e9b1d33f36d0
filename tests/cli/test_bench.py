"""``ppsd3 bench``: arguments, files and exit codes; what is measured is in tests/bench."""

import json
import os
import re
import signal

import pytest

from ppsd3.bench import runner
from ppsd3.bench.results import Measurement, SideResult
from ppsd3.cli.main import main


@pytest.fixture
def measured(monkeypatch):
    """Replaces measuring; the list of (bench, sides, repeats) that would have been."""
    asked = []

    def measure(bench, workspace, names, repeats, progress):
        asked.append((bench, names, repeats))
        results = [SideResult.of(side) for side in bench.sides() if side.name in ("diffusers", "ppsd3")]
        for result in results:
            result.seconds, result.peak = [1.0, 2.0], 10**9
        results[-1].failure = measure.failure
        return Measurement.of(bench, results)

    measure.failure = ""
    asked.append(measure)
    monkeypatch.setattr(runner, "run_bench", measure)
    return asked


def test_table_and_json(measured, tmp_path, capsys):
    file = tmp_path / "out.json"
    options = ["--sides", "ppsd3", "diffusers", "--repeats", "2", "--threads", "2", "--quiet", "--json", str(file)]
    assert main(["bench", "step", *options, "--size", "512", "--layers", "3"]) == 0
    shown = capsys.readouterr()
    assert "step 512x512, 3 layers: 2 threads, 2 rounds" in shown.out and "1.50 s" in shown.out and not shown.err
    assert json.loads(file.read_text())["measurements"][0]["settings"]["layers"] == 3
    (bench, names, repeats), *others = measured[1:]
    assert (bench.size, bench.threads, repeats, others) == (512, 2, 2, []) and "ppsd3" in names


def test_all_benches_with_their_own_sizes(measured, capsys):
    assert main(["bench", "all"]) == 0
    found = [(bench.name, bench.size, bench.layers) for bench, *_ in measured[1:]]
    assert {"step", "vae", "vae-encode", "text", "load", "picture", "train", "train-lora", "scale", "generate"} == {
        f[0] for f in found
    }
    assert {("step", 512, 2), ("step", 1024, 2), ("load", 512, 24), ("picture", 512, 4), ("train", 256, 2)} <= set(
        found
    )
    assert [size for name, size, _ in found if name == "scale"] == [256, 384, 512, 768, 1024]
    assert "T D^2" in capsys.readouterr().out


def test_a_failure_of_ours_is_the_exit_code(measured):
    measured[0].failure = "run: no luck"
    assert main(["bench", "step", "--quiet"]) == 1


@pytest.mark.parametrize(
    "options, words",
    [
        (["--repeats", "0"], "--repeats is 0"),
        (["--size", "500"], "--size 500"),
        (["--sides", "tensorrt"], "tensorrt.*diffusers"),
        (["--json", "nowhere/at/all.json"], "--json.*nowhere"),
        (["--plot", "plot.txt"], "--plot plot.txt.*png"),
    ],
)
def test_refused_before_measuring(measured, capsys, options, words):
    assert main(["bench", "step", *options]) == 2
    assert re.search(words, capsys.readouterr().err) and len(measured) == 1


def test_plot_without_matplotlib(measured, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", "step", "--plot", str(tmp_path / "out.png")]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err and len(measured) == 1


def test_nothing_is_left_behind_when_it_is_ended(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "run_bench", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert main(["bench", "step", "--directory", str(tmp_path)]) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before and not list(tmp_path.iterdir())
