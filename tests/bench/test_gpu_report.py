"""The GPU report: whole at every moment, silent about its user, and complete on a device that is there."""

import json
import os

import numpy as np
import paddle
import pytest

from ppsd3.bench.configurations import TINY
from ppsd3.bench.gpu_report import pictures, run, write_report
from ppsd3.bench.gpu_report.operations import Form, attention_table
from ppsd3.bench.gpu_report.report import Report, without_directories
from ppsd3.cli.main import main
from ppsd3.utils import gpu
from ppsd3.utils.errors import InputError
from ppsd3.utils.gpu import Card, GpuBuild

FORMS = {"joint": Form((2, 30, 2, 8)), "T5": Form((2, 8, 2, 8), (1, 2, 8, 8), scale=1.0)}


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    """What a report sets does not outlive the test."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path / "report.json", seconds=60, say=lambda line: None)


def test_a_section_that_fails_does_not_end_the_report(report):
    def fails():
        attention_table(["float32"], {"wrong": Form((1, 2, 3))})
        raise InputError("no /home/somebody/models/sd3 here\nat all")

    assert report.section("bad", fails) is None and report.section("good", lambda: {"x": np.nan}) is not None
    sections = read(report.path)["sections"]
    assert sections["bad"]["error"] == "InputError: no sd3 here at all" and sections["good"]["result"] == {"x": "nan"}
    assert report.failed == ["bad"]


def test_where_an_error_came_from(report):
    report.section("bad", lambda: pictures.Pictures("/nowhere/at/all", "cpu", "float32").whole("float32"))
    entry = read(report.path)["sections"]["bad"]
    assert entry["where"] and all(line.split(":")[0].endswith(".py") for line in entry["where"])
    assert "/nowhere" not in json.dumps(entry)


def test_an_interrupted_report_is_whole(report):
    report.describe({"device": "cpu"})
    report.section("first", lambda: 1)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.section("second", interrupted)
    content = read(report.path)
    assert content["complete"] is False and list(content["sections"]) == ["first"]
    report.finish()
    assert read(report.path)["complete"] is True


def test_it_ends_in_time(tmp_path):
    report = Report(tmp_path / "report.json", seconds=-1, say=lambda line: None)
    report.section("late", lambda: pytest.fail("it was run"))
    assert "were over" in read(report.path)["sections"]["late"]["left_out"] and not report.failed


@pytest.mark.parametrize(
    "text, shown",
    [
        ("cannot read /home/jane/a b/x.safetensors: gone", "cannot read a b/x.safetensors: gone"),
        (r"in C:\Users\jane\x.py", "in x.py"),
        ("1 / 2 of [2, 3] at a.py:3", "1 / 2 of [2, 3] at a.py:3"),
    ],
)
def test_directories_are_left_out(text, shown):
    assert without_directories(text) == shown


def test_the_machine_is_described_without_its_names(monkeypatch):
    assert run.machine("cpu")["gpu"] is None
    card = Card(0, "NVIDIA A100-SXM4-40GB", (8, 0), 40 * 10**9)
    monkeypatch.setattr(gpu, "cards", lambda: [card])
    monkeypatch.setattr(gpu, "build", lambda: GpuBuild("3.3.1", "12.9", "9.9", ((8, 0), (9, 0))))
    monkeypatch.setattr(gpu, "driver", lambda: ("550.54.14", (12, 4)))
    said = run.machine("gpu")
    assert said["gpu"] == card.name and said["capability"] == "8.0" and said["code"] == ["8.0", "9.0"]
    assert said["driver"] == "550.54.14" and said["driver_cuda"] == "12.4" and said["memory"] == card.memory
    assert not {os.uname().nodename, os.path.expanduser("~")} & set(map(str, said.values()))


def test_attention_beside_its_definition():
    table = attention_table(["float32"], {**FORMS, "wrong": Form((2, 3, 2))})
    assert table["joint, float32"]["error"] < 1e-6 and table["T5, float32"]["error"] < 1e-6
    assert table["joint, float32"]["by"] != "reference" and "Error" in table["wrong, float32"]


def test_reads_are_counted_by_line_and_on_devices_alone(monkeypatch):
    x = paddle.ones([2])
    with pictures.counted_reads() as reads:
        x.numpy(), x.sum().item()
    assert not reads
    place = type("Place", (), {"is_cpu_place": lambda self: False})()
    monkeypatch.setattr(paddle.Tensor, "place", property(lambda self: place))
    with pictures.counted_reads() as reads:
        x.numpy()
    assert reads == {"elsewhere": 1}
    before = paddle.Tensor.numpy
    with pytest.raises(ZeroDivisionError), pictures.counted_reads():
        1 / 0  # noqa: B018
    assert paddle.Tensor.numpy is before


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--bench"], "--gpu-report --bench"),
        (["--gpu-report", "x.json", "--json"], "Leave --json"),
        (["--gpu-report", "x.json", "--device", "gpu:99"], "'gpu:99' is not here"),
    ],
)
def test_refusals(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *arguments]) == 2 and said in capsys.readouterr().err and not os.listdir(tmp_path)


def test_the_command_writes_the_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "report_pictures", lambda report, made: report.section("x", lambda: 1 / 0))
    monkeypatch.setattr(run, "attention_table", lambda dtypes, forms: attention_table(dtypes, FORMS))
    path = tmp_path / "report.json"
    assert main(["doctor", "--gpu-report", str(path), "--device", "cpu"]) == 1
    assert "failed: x" in capsys.readouterr().out and read(path)["complete"] is True


@pytest.mark.machine
def test_whole_on_a_cpu(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "torch_seconds", lambda *task: 0.0)  # test_gpu_report_parity.py has it
    path, lines = tmp_path / "report.json", []
    transformer = {**TINY["transformer"], "num_layers": 1}
    options = {"size": 32, "steps": 1, "forms": FORMS, "transformer": transformer, "bench_sizes": (64,)}
    report = write_report(path, "cpu", bench=True, model=tiny_checkpoint, say=lines.append, **options)
    content = read(path)
    assert report.failed == [] and content["complete"] and content["machine"]["paddle"] == paddle.__version__
    sections = content["sections"]
    assert len(lines) == len(sections) > 20
    for name, entry in sections.items():
        if name.startswith(("picture, ", "moved", "guidance")):
            assert entry["result"]["finite"] and entry["result"]["rmse"] < 0.1, name
    assert sections["bench: ppsd3 eager, 64, float32"]["result"] > 0
    assert str(tiny_checkpoint) not in json.dumps(content)
