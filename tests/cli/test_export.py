"""``ppsd3 export``: the arguments reach the export, and its errors the user."""

import json

import pytest

import ppsd3
from ppsd3.cli.main import main


def test_a_checkpoint_becomes_models(tiny_checkpoint, tmp_path, capsys):
    target = tmp_path / "exported"
    arguments = ["export", str(tiny_checkpoint), f"{target}/", "--without-t5", "--scheduler", "heun"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(target)
    models = json.loads((target / "inference_index.json").read_text())["models"]
    assert set(models) == {"transformer", "vae_decoder", "vae_encoder", "text_encoder", "text_encoder_2"}
    ppsd3.FlowMatchHeunDiscreteScheduler.from_pretrained(target / "scheduler")


@pytest.mark.parametrize(
    "model, target, message",
    [
        ("nowhere/at-all", "x", "nowhere/at-all"),
        ("shapes", "file", "is a file"),
        ("shapes", ".", "current directory"),
        ("shapes", "file/x", "file"),
    ],
)
def test_what_cannot_be_used(tmp_path, monkeypatch, capsys, model, target, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["export", model, target]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
