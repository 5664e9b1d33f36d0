"""`ppsd3 train --plot` with matplotlib."""

import json

import pytest
from PIL import Image

from ppsd3.cli.main import main
from ppsd3.training.plots import plot_run

pytestmark = pytest.mark.interop


def test_plot(tmp_path, capsys):
    entries = [
        {"step": 5, "lr": 1e-4, "loss": 1.5, "grad_norm": 2.0, "loss_t": [None, *[1.0] * 9]},
        {"step": 10, "lr": 1e-4, "loss": 1.25, "grad_norm": 1.0, "skipped": 0.2},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert main(["train", "--plot", str(tmp_path)]) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(tmp_path / "log.png")
    three = Image.open(path).size
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 10, "score": 0.5}\n')
    four = Image.open(plot_run(tmp_path, tmp_path / "again.png")).size
    assert four[0] == three[0] and four[1] == three[1] * 4 // 3  # a panel more, of the validation
    assert (plot_run(tmp_path, tmp_path / "log.svg"), True) and b"<svg" in (tmp_path / "log.svg").read_bytes()
