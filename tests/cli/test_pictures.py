"""Pictures that the options of the commands name: the values that the pipelines get."""

import argparse
import importlib

import numpy as np
import pytest
from helpers import pictures
from PIL import Image

import ppsd3
from ppsd3.cli.call_options import call_arguments
from ppsd3.cli.main import COMMANDS, main
from ppsd3.pipelines.component_classes import PIPELINE_CLASSES
from ppsd3.utils.errors import InputError

DRAWING = {
    "generate": ["StableDiffusion3Pipeline"],
    "img2img": ["StableDiffusion3Img2ImgPipeline"],
    "inpaint": ["StableDiffusion3InpaintPipeline"],
    "control": [name for name in PIPELINE_CLASSES if "ControlNet" in name],
}
OPTIONS = [
    (command, name, argument.name, argument.option)
    for command, names in DRAWING.items()
    for name in names
    for argument in getattr(ppsd3, name).call_arguments()
    if argument.kind.startswith("picture")
]
FILES = {
    **dict.fromkeys(("1", "L", "LA opaque", "LA", "P", "P transparent", "RGB", "RGBA opaque", "RGBA", "I;16"), "PNG"),
    **dict.fromkeys(("CMYK", "LAB", "F", "I;16B", "I"), "TIFF"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Mode -> the path of a file of that mode."""
    directory = tmp_path_factory.mktemp("pictures")
    for number, (mode, kind) in enumerate(FILES.items()):
        pictures.MODES[mode][0].save(directory / f"{number}.{kind.lower()}", kind)
    return {mode: directory / f"{number}.{kind.lower()}" for number, (mode, kind) in enumerate(FILES.items())}


@pytest.fixture(scope="module")
def parsers():
    made = {}
    for command in DRAWING:
        made[command] = argparse.ArgumentParser()
        importlib.import_module(f"ppsd3.cli.{command}").add_arguments(made[command])
    return made


def opened(parsers, command, name, argument, option, path):
    arguments = parsers[command].parse_args(["a red circle", option, str(path)])
    return call_arguments(arguments, getattr(ppsd3, name))[argument]


@pytest.mark.parametrize("command, name, argument, option", OPTIONS)
def test_every_option_and_mode(parsers, files, command, name, argument, option):
    for mode, path in files.items():
        _, expected, transparent = pictures.MODES[mode]
        if transparent and "mask" in argument:
            with pytest.raises(InputError, match=f"{option} {path}.*transparent"):
                opened(parsers, command, name, argument, option, path)
            continue
        found = opened(parsers, command, name, argument, option, path)
        if "mask" in argument:
            expected = np.asarray(Image.fromarray(expected).convert("L"))
        assert found.mode == ("L" if "mask" in argument else "RGB")
        difference = np.abs(np.asarray(found).astype(int) - expected).max()
        assert difference <= pictures.TOLERANCE.get(mode, 0), mode


@pytest.mark.parametrize("command, name, argument, option", OPTIONS)
def test_orientation_and_refusals(parsers, tmp_path, command, name, argument, option):
    exif = Image.Exif()
    exif[0x0112] = 6
    source = pictures.greys() if "mask" in argument else pictures.colours()
    source.save(tmp_path / "turned.png", exif=exif)
    found = opened(parsers, command, name, argument, option, tmp_path / "turned.png")
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(source), -1))
    contents = {
        "drawing.svg": b"<svg/>",
        "cut.png": (tmp_path / "turned.png").read_bytes()[:-40],
        "a.txt": b"no picture",
    }
    contents["bomb.png"] = pictures.png(30000, 30000)
    for file, content in contents.items():
        (tmp_path / file).write_bytes(content)
        with pytest.raises(InputError, match=f"{option} {tmp_path / file}"):
            opened(parsers, command, name, argument, option, tmp_path / file)


def test_every_command_that_draws_is_here():
    drawing = [c for c in COMMANDS if hasattr(importlib.import_module(f"ppsd3.cli.{c}"), "add_drawing_arguments")]
    assert drawing == list(DRAWING)


def test_the_size_is_that_of_the_picture_upright(tmp_path, monkeypatch, tiny_checkpoint):
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (96, 64), "red").save("photo.jpg", exif=exif)
    options = ["--model", str(tiny_checkpoint), "--steps", "2", "--quiet", "--output", "x.png"]
    assert main(["img2img", "a red circle", "--image", "photo.jpg", *options]) == 0
    assert Image.open("x.png").size == (64, 96)
