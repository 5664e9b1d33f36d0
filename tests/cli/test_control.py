"""``ppsd3 control``: what the pipelines with ControlNets draw, from files, and back from the PNG."""

import numpy as np
import pytest
from helpers import tiny
from PIL import Image

import ppsd3
from ppsd3.cli.main import main
from ppsd3.cli.png import read_settings

PROMPT = "a red circle"
SETTINGS = ("--steps", "3", "--seed", "3")


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs ``ppsd3 control ...`` in a directory with pictures and ControlNets -> (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("edges", "photo"):
        Image.fromarray(rng.integers(0, 256, (70, 100, 3), dtype="uint8")).save(f"{name}.png")
    Image.new("L", (100, 70), 255).save("mask.png")
    for name, extra in (("net", 0), ("masked", 1)):
        config = {**tiny.TRANSFORMER, "num_layers": 2, "extra_conditioning_channels": extra}
        tiny.randomize(ppsd3.SD3ControlNetModel(**config), 1, 0.5).save_pretrained(name)

    def call(*arguments):
        code = main(["control", *arguments, "--model", str(tiny_checkpoint), "--quiet"])
        return code, capsys.readouterr().err

    return call


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_draws_what_the_pipeline_draws(run, tiny_checkpoint):
    arguments = (PROMPT, "--controlnet", "net", "--control-image", "edges.png", "--control-scale", "0.5", *SETTINGS)
    assert run(*arguments, "--control-end", "0.7", "--output", "x.png") == (0, "")
    net = ppsd3.SD3ControlNetModel.from_pretrained("net")
    pipe = ppsd3.StableDiffusion3ControlNetPipeline.from_pretrained(tiny_checkpoint, controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 3, "height": 64, "width": 96, "controlnet_conditioning_scale": 0.5}
    expected = pipe(
        PROMPT,
        control_image=Image.open("edges.png"),
        control_guidance_end=0.7,
        generator=ppsd3.TorchGenerator(3),
        **settings,
    ).images[0]
    assert np.array_equal(pixels("x.png"), np.asarray(expected))
    assert read_settings("x.png")["controlnet"] == ["net"]
    assert run("--from-png", "x.png", "--trust-png", "--output", "again.png")[0] == 0
    assert np.array_equal(pixels("x.png"), pixels("again.png"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--controlnet", "net", "--control-image", "edges.png", "--image", "photo.png", "--strength", "0.9"),
        ("--controlnet", "masked", "--control-image", "photo.png", "--mask", "mask.png"),
        ("--controlnet", "net", "--control-image", "edges.png", "--canny-8b"),
        (*("--controlnet", "net", "--control-image", "edges.png") * 2, "--control-scale", "0.5", "1.0"),
    ],
)
def test_kinds_of_control(run, arguments):
    plain = ("--controlnet", "net", "--control-image", "edges.png")
    assert run(PROMPT, *plain, *SETTINGS, "--output", "plain.png") == (0, "")
    assert run(PROMPT, *arguments, *SETTINGS, "--output", "x.png") == (0, "")
    assert np.abs(pixels("x.png") - pixels("plain.png")).max() > 2
    assert run("--from-png", "x.png", "--trust-png", "--output", "again.png") == (0, "")
    assert np.array_equal(pixels("x.png"), pixels("again.png"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "0 --controlnet and 0 --control-image"),
        (("--controlnet", "net"), "1 --controlnet and 0 --control-image"),
        (("--controlnet", "net", "--control-image", "nowhere.png"), "nowhere.png: there is no such file"),
        (("--controlnet", "nowhere", "--control-image", "edges.png"), "There is no directory nowhere"),
        (("--controlnet", "masked", "--control-image", "edges.png"), "control_mask"),
        (
            ("--controlnet", "net", "--control-image", "edges.png", "--mask", "mask.png", "--image", "photo.png"),
            "leave one out",
        ),
        (("--controlnet", "net", "--control-image", "edges.png", "--control-scale", "1", "2"), "a list of 1"),
    ],
)
def test_mistakes(run, arguments, message):
    code, error = run(PROMPT, *arguments, *SETTINGS, "--output", "x.png")
    assert code == 2 and message in error
