"""``ppsd3 img2img`` and ``ppsd3 inpaint``: what the pipelines draw, from files, and back from the PNG."""

import os

import numpy as np
import pytest
from PIL import Image

import ppsd3
from ppsd3.cli.main import main
from ppsd3.cli.png import read_settings

PROMPT = "a red circle"


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs ``ppsd3 COMMAND ...`` in a directory with a picture and a mask -> (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (70, 100, 3), dtype="uint8")).save("photo.png")
    mask = np.zeros((70, 100), "uint8")
    mask[20:50, 30:80] = 255
    Image.fromarray(mask).save("mask.png")

    def call(*arguments):
        code = main([*arguments, "--model", str(tiny_checkpoint), "--quiet"])
        return code, capsys.readouterr().err

    return call


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def load(class_, checkpoint):
    pipe = getattr(ppsd3, class_).from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe


SETTINGS = ("--steps", "4", "--seed", "3")
OPTIONS = {"num_inference_steps": 4, "height": 64, "width": 96, "strength": 0.5}


def test_img2img_draws_what_the_pipeline_draws(run, tiny_checkpoint):
    arguments = ("img2img", PROMPT, "--image", "photo.png", "--strength", "0.5", *SETTINGS)
    assert run(*arguments, "--output", "x.png")[0] == 0
    pipe = load("StableDiffusion3Img2ImgPipeline", tiny_checkpoint)
    expected = pipe(PROMPT, image=Image.open("photo.png"), generator=ppsd3.TorchGenerator(3), **OPTIONS).images[0]
    assert np.array_equal(pixels("x.png"), np.asarray(expected))
    settings = read_settings("x.png")
    assert (settings["command"], settings["image"], settings["strength"]) == ("img2img", "photo.png", 0.5)
    assert run("img2img", "--from-png", "x.png", "--trust-png", "--output", "again.png")[0] == 0
    assert np.array_equal(pixels("x.png"), pixels("again.png"))


def test_inpaint_draws_what_the_pipeline_draws(run, tiny_checkpoint):
    arguments = ("inpaint", PROMPT, "--image", "photo.png", "--mask", "mask.png", "--strength", "0.5", *SETTINGS)
    assert run(*arguments, "--output", "x.png")[0] == 0
    pipe = load("StableDiffusion3InpaintPipeline", tiny_checkpoint)
    pictures = {"image": Image.open("photo.png"), "mask_image": Image.open("mask.png")}
    expected = pipe(PROMPT, generator=ppsd3.TorchGenerator(3), **pictures, **OPTIONS).images[0]
    assert np.array_equal(pixels("x.png"), np.asarray(expected))
    for option in ("--mask-blur", "--padding-mask-crop"):
        assert run(*arguments, option, "9", "--output", "other.png")[0] == 0
        assert pixels("other.png").shape != pixels("x.png").shape or np.abs(pixels("other.png") - pixels("x.png")).max()
        assert run("inpaint", "--from-png", "other.png", "--trust-png", "--output", "again.png")[0] == 0
        assert np.array_equal(pixels("other.png"), pixels("again.png"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("img2img", PROMPT), "--image is missing"),
        (("img2img", PROMPT, "--image", "nowhere.png"), "nowhere.png: there is no such file"),
        (("img2img", PROMPT, "--image", "text.png"), "cannot be read as a picture"),
        (("img2img", PROMPT, "--image", "photo.png", "--strength", "2"), "`strength` is 2.0"),
        (("inpaint", PROMPT, "--image", "photo.png"), "--mask is missing"),
        (("inpaint", PROMPT, "--image", "photo.png", "--mask", "small.png"), "of one size"),
        (("generate", "--from-png", "drawn.png"), "ppsd3 img2img"),
    ],
    ids=str,
)
def test_refusals(run, arguments, message):
    with open("text.png", "w") as file:
        file.write("no picture")
    Image.new("L", (8, 8)).save("small.png")
    drawn = ("--image", "photo.png", "--steps", "2", "--output", "drawn.png")
    assert run("img2img", PROMPT, *drawn)[0] == 0
    code, err = run(*arguments)
    assert code == 2 and message in err
    assert sorted(os.listdir()) == ["drawn.png", "mask.png", "photo.png", "small.png", "text.png"]
