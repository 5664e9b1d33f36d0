"""Numbers that follow from times, and what the report says."""

import json

import pytest

from ppsd3.bench import flops, report
from ppsd3.bench.benches import StepBench
from ppsd3.bench.configurations import MEDIUM
from ppsd3.bench.plot import plot
from ppsd3.bench.results import Measurement, SideResult, _fit, scalings, thread_speedups


def side(name, seconds, ours=False, int8=False, roofline=False, threads=2, bar=1e-3, **more):
    return SideResult(name, ours, int8, roofline, threads, bar, list(seconds), **{"peak": 2 * 10**9, **more})


def measurement(results, bench="step", tokens=1024):
    settings = {"threads": 2, "tiny": False, "size": 512}
    return Measurement(bench, f"{bench} of {tokens}", settings, tokens, 333, 1536, 300 * 10**9, 100 * 10**9, results)


@pytest.fixture
def steps():
    return measurement(
        [
            side("diffusers", [2.0, 4.0, 2.2], is_reference=True),
            side("diffusers-compiled", [1.6, 3.4, 1.8], peak=10**9),
            side("cheat", [0.1, 0.1, 0.1], errors={"velocity": 0.5}),
            side("openvino-int8", [0.8, 1.6, 0.8], int8=True, errors={"velocity": 0.02}, bar=0.1),
            side("diffusers-1-thread", [1.0, 1.0, 1.0], threads=1),
            side("broken", [0.1], failure="run:\nno luck"),
            side("openvino", [], absent="pip install openvino"),
            side("ppsd3", [1.2, 2.4, 1.4], ours=True, errors={"velocity": 1e-6}),
            side("gemm", [0.5, 0.4, 0.5], roofline=True),
        ]
    )


def by_name(one):
    return {result.name: result for result in one.results}


def test_the_fastest_rival_is_right_float32_and_has_all_threads(steps):
    assert steps.rival.name == "diffusers-compiled"


def test_ratios_are_of_rounds(steps):
    ours = by_name(steps)["ppsd3"]
    assert steps.ratio(ours) == pytest.approx(0.75)  # the middle one of 0.75, 0.71, 0.78
    assert steps.ratio(by_name(steps)["broken"]) is None
    assert steps.memory_ratio(ours) == pytest.approx(2)
    assert ours.median == 1.4 and ours.spread == pytest.approx(1.2 / 1.4)


def test_share_of_the_roofline(steps):
    found = by_name(steps)
    assert steps.roofline == pytest.approx(200e9)
    assert steps.share(found["ppsd3"]) == pytest.approx(300 / 1.4 / 200)
    assert steps.share(found["openvino-int8"]) is None and steps.share(found["diffusers-1-thread"]) is None


def test_no_rival(steps):
    alone = measurement([result for result in steps.results if result.ours])
    assert alone.rival is None and alone.ratio(alone.results[0]) is None and alone.roofline is None
    assert any("ppsd3" in line for line in report.table(alone))


def test_table(steps):
    lines = list(report.table(steps))
    text = "\n".join(lines)
    assert "absent: pip install openvino" in text and "failed: run: no luck" in text
    assert "5.0e-01 WRONG" in text and "reference" in text and "0.75" in text
    assert "roofline: 200.0 GFLOP/s" in text and "300 GFLOP" in text and "ratios: of time to diffusers-compiled" in text
    columns = [line for line in lines if line.startswith("  ") and " s  " in line]
    assert len({len(line) for line in columns}) == 1


def test_json(steps, tmp_path):
    report.write_json(tmp_path / "out.json", [steps], ["ppsd3", "bench", "step"])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["command"] == ["ppsd3", "bench", "step"] and found["machine"]["packages"]
    entries = {entry["name"]: entry for entry in found["measurements"][0]["results"]}
    assert entries["ppsd3"]["seconds"] == [1.2, 2.4, 1.4] and entries["ppsd3"]["ratio"] == pytest.approx(0.75)
    assert entries["cheat"]["wrong"] and found["measurements"][0]["fastest_rival"] == "diffusers-compiled"


def scale(cost):
    """Measurements at the sizes of ``bench scale`` whose times are ``cost(all tokens)``."""
    tokens = (256, 576, 1024, 2304, 4096)
    found = [measurement([side("ppsd3", [cost(n + 333)] * 3, ours=True)], "scale", n) for n in tokens]
    found[2].results.append(side("ppsd3-1-thread", [cost(1357) * 1.9] * 3, ours=True, threads=1))
    return found


def test_fit_of_time_over_tokens():
    (found,) = scalings(scale(lambda t: 3e-10 * t * 1536**2 + 5e-11 * t * t * 1536)[::-1])
    assert found.tokens == [256, 576, 1024, 2304, 4096]
    assert (found.linear, found.quadratic) == (pytest.approx(3e-10), pytest.approx(5e-11))
    assert found.growth == pytest.approx(1) and found.at(1024) == pytest.approx(found.seconds[2])


def test_faster_growth_shows():
    (found,) = scalings(scale(lambda t: 1e-10 * t**3))
    assert found.growth > 1.5 and found.linear == 0


def test_fit_is_never_negative():
    assert _fit([1, 2, 3], [1, 1.2, 1.3], 1)[1] == 0


def test_threads():
    measurements = scale(lambda t: t)
    assert thread_speedups(measurements) == [("ppsd3", 2, pytest.approx(1.9))]
    text = "\n".join(report.scale_lines(measurements))
    assert "1 to 2 threads speed it up 1.90 times" in text and "T D^2" in text


def test_plot(tmp_path, steps):
    pytest.importorskip("matplotlib")
    plot(tmp_path / "out.png", [steps, *scale(lambda t: t)])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_operations_of_the_stack():
    """Two blocks at 512x512: about 276 GFLOP of products and 40 of attention, without the embeddings."""
    config = {**MEDIUM["transformer"], "num_layers": 2}
    stack = flops.transformer(config, 1024, 333, 2) - 2 * flops._embeddings(config, 1024, 333)
    assert stack == pytest.approx(316e9, rel=0.01)


def test_shapes_of_the_roofline():
    assert StepBench(512, 2).gemms[0] == (2048, 1536, 3 * 1536)
