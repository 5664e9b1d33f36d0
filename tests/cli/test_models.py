"""`ppsd3 models`, over a cache of the hub that is made here."""

import os
import shutil

import pytest
from huggingface_hub import constants

from ppsd3.cli.main import main
from ppsd3.utils.hub import BUNDLED

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache with one pipeline, org/drawing, and a model of another kind."""
    cache = tmp_path / "hub"
    for repo in ("drawing", "other"):
        (cache / f"models--org--{repo}" / "refs").mkdir(parents=True)
        (cache / f"models--org--{repo}" / "refs" / "main").write_text(COMMIT)
    snapshot = cache / "models--org--drawing" / "snapshots" / COMMIT
    shutil.copytree(BUNDLED["shapes"], snapshot)
    other = cache / "models--org--other" / "snapshots" / COMMIT
    other.mkdir(parents=True)
    (other / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def snapshot(cache):
    return cache / "models--org--drawing" / "snapshots" / COMMIT


@pytest.mark.parametrize("action", [[], ["list"]])
def test_what_there_is(cache, capsys, action):
    assert main(["models", *action]) == 0
    shown = capsys.readouterr().out
    assert "shapes-silhouette" in shown and "org/drawing" in shown and str(cache) in shown and "org/other" not in shown
    size = sum(os.path.getsize(os.path.join(folder, f)) for folder, _, fs in os.walk(BUNDLED["shapes"]) for f in fs)
    assert shown.count(f"{size / 1e6:.1f} MB") == 2  # the bundled one and its copy


def test_a_whole_model(snapshot, capsys):
    for model in ("shapes", str(snapshot)):
        assert main(["models", "check", model]) == 0
        shown = capsys.readouterr().out
        assert shown.count(" whole, ") == 9


@pytest.mark.parametrize("harm", ["cut weights", "no folder", "broken configuration", "no link"])
def test_what_is_not_whole_is_named(snapshot, capsys, harm):
    weights = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    if harm == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif harm == "no folder":
        shutil.rmtree(snapshot / "vae")
    elif harm == "broken configuration":
        (snapshot / "vae" / "config.json").write_text("{")
    else:
        weights.unlink()
        weights.symlink_to(snapshot / "nowhere")
    assert main(["models", "check", str(snapshot)]) == 2
    out, error = capsys.readouterr()
    assert out.count(" whole, ") == 8 and "vae cannot be used" in error and "models download" in error


def test_what_cannot_be_checked(cache, tmp_path, capsys):
    assert main(["models", "check", str(tmp_path)]) == 2
    assert "no model_index.json" in capsys.readouterr().err
    assert main(["models", "check", str(tmp_path / "nowhere")]) == 2
    assert "Check the path" in capsys.readouterr().err


def test_it_is_removed_from_the_cache_and_nothing_else(cache, capsys):
    assert main(["models", "remove", "org/drawing", "--yes"]) == 0
    assert "removed org/drawing" in capsys.readouterr().out
    assert os.listdir(cache) == ["models--org--other"]


@pytest.mark.parametrize("model", ["org/other", "shapes", "../other", "org/none", ""])
def test_what_is_not_in_the_cache_is_not_removed(cache, capsys, model):
    before = sorted(cache.rglob("*"))
    assert main(["models", "remove", model, "--yes"]) == 2
    assert "It has org/drawing" in capsys.readouterr().err and sorted(cache.rglob("*")) == before


@pytest.mark.parametrize("answer, code", [("n", 0), ("", 0), (None, 2)])
def test_it_asks(cache, monkeypatch, capsys, answer, code):
    """None: nobody is there."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert main(["models", "remove", "org/drawing"]) == code
    assert ("--yes" in capsys.readouterr().err) is (answer is None)
    assert (cache / "models--org--drawing" / "snapshots" / COMMIT / "vae").is_dir()
    if answer is not None:
        monkeypatch.setattr("builtins.input", lambda question: "y")
        assert main(["models", "remove", "org/drawing"]) == 0 and not (cache / "models--org--drawing").exists()


@pytest.mark.parametrize("model", ["shapes", "."])
def test_what_is_here_is_not_downloaded(model, capsys):
    assert main(["models", "download", model]) == 2
    assert "here already" in capsys.readouterr().err


def test_a_download_asks_for_what_is_said(monkeypatch, capsys):
    from ppsd3.cli import models

    asked = {}
    monkeypatch.setattr(models, "resolve_checkpoint", lambda name, **given: asked.update(given, name=name) or "/there")
    assert main(["models", "download", "org/drawing", "--variant", "fp16", "--revision", "v2", "--without-t5"]) == 0
    assert asked == {
        "name": "org/drawing",
        "variant": "fp16",
        "revision": "v2",
        "skip_components": ("text_encoder_3", "tokenizer_3"),
    }
    assert capsys.readouterr().out == "/there\n"
