"""`ppsd3 evaluate shapes` and `ppsd3 evaluate samplers`."""

import pytest

from ppsd3.cli.main import main
from ppsd3.shapes.scene import TASKS


def test_scores_each_task_and_saves_a_sheet(tiny_checkpoint, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    arguments = ["--model", str(tiny_checkpoint), "--per-task", "1", "--steps", "1", "--sheet", str(sheet)]
    assert main(["evaluate", "shapes", *arguments]) == 0
    shown = capsys.readouterr().out
    assert all(task in shown for task in TASKS)
    assert "overall" in shown and "0.000" in shown  # random weights draw no shape
    assert sheet.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [(["--per-task", "0"], "--per-task is 0"), (["--per-task", "1000"], "ask for 1 to"), (["--batch", "0"], "--batch")],
)
def test_impossible_numbers_are_refused_before_loading(arguments, message, capsys):
    assert main(["evaluate", "shapes", "--model", "/no/such/model", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_sheet_needs_a_directory(tmp_path, capsys):
    assert main(["evaluate", "shapes", "--sheet", str(tmp_path / "missing" / "sheet.png")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_compares_samplers(tiny_checkpoint, capsys):
    arguments = ["--model", str(tiny_checkpoint), "--count", "2", "--batch", "2", "--guidance-scale", "1"]
    assert main(["evaluate", "samplers", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["euler", "28", "28"],
        ["heun", "14", "27"],
        ["dpm", "12", "12"],
        ["unipc", "12", "12"],
    ]
    assert all(0 < float(line.split()[3]) < 10 for line in lines[1:])
