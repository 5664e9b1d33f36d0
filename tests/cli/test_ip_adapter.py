"""``--ip-adapter`` and ``--ip-adapter-image`` of the commands that draw."""

import shutil

import numpy as np
import pytest
from helpers import ip_adapters, tiny
from PIL import Image

import ppsd3
from ppsd3.cli.main import main
from ppsd3.cli.options import split_scale
from ppsd3.cli.png import read_settings

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return ip_adapters.write(tmp_path_factory.mktemp("ip") / "adapter", tiny.TRANSFORMER["num_layers"])


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs ``ppsd3 COMMAND ...`` in a directory with two pictures -> (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("style.png", "photo.png")):
        levels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype="uint8")
        Image.fromarray(levels).save(name)

    def call(*arguments):
        code = main([*arguments, "--model", str(tiny_checkpoint), "--steps", "2", "--seed", "3", "--quiet"])
        return code, capsys.readouterr().err

    return call


COMMANDS = {
    "generate": ("StableDiffusion3Pipeline", {}),
    "img2img": ("StableDiffusion3Img2ImgPipeline", {"image": "photo.png"}),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_draws_what_the_pipeline_draws(run, tiny_checkpoint, adapter, command):
    class_, pictures = COMMANDS[command]
    own = [part for name, path in pictures.items() for part in (f"--{name}", path)]
    option = f"{adapter / ip_adapters.FILE}:0.9"
    arguments = (command, PROMPT, "--ip-adapter", option, "--ip-adapter-image", "style.png", *own)
    assert run(*arguments, "--output", "x.png") == (0, "")
    pipe = getattr(ppsd3, class_).from_pretrained(tiny_checkpoint)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(adapter)
    pipe.set_ip_adapter_scale(0.9)
    given = {name: Image.open(path) for name, path in {**pictures, "ip_adapter_image": "style.png"}.items()}
    expected = pipe(PROMPT, num_inference_steps=2, generator=ppsd3.TorchGenerator(3), **given).images[0]
    assert np.array_equal(np.asarray(Image.open("x.png")), np.asarray(expected))
    settings = read_settings("x.png")
    assert (settings["ip_adapter"], settings["ip_adapter_image"]) == (option, "style.png")
    assert run(command, "--from-png", "x.png", "--trust-png", "--output", "again.png") == (0, "")
    assert np.array_equal(np.asarray(Image.open("x.png")), np.asarray(Image.open("again.png")))


def test_together_with_on_demand(run, adapter, tmp_path):
    """And with an image encoder from elsewhere."""
    (tmp_path / "alone").mkdir()
    shutil.copy(adapter / ip_adapters.FILE, tmp_path / "alone")
    options = ("--ip-adapter", "alone", "--ip-adapter-image", "style.png", "--on-demand")
    code, error = run("generate", PROMPT, *options)
    assert code == 2 and "load_image_encoder" in error
    options = (*options, "--image-encoder", str(adapter / "image_encoder"))
    assert run("generate", PROMPT, *options, "--output", "x.png") == (0, "")
    assert run("generate", PROMPT, "--on-demand", "--output", "plain.png") == (0, "")
    difference = np.asarray(Image.open("x.png")).astype(int) - np.asarray(Image.open("plain.png"))
    assert np.abs(difference).max() > 10


WRONG = {
    "no adapter": (["--ip-adapter-image", "style.png"], "Name one by --ip-adapter"),
    "no adapter for the encoder": (["--image-encoder", "a"], "--image-encoder goes with an IP-adapter"),
    "no picture": (["--ip-adapter", "a"], "--ip-adapter-image is missing"),
    "no such picture": (["--ip-adapter", "a", "--ip-adapter-image", "none.png"], "no such file"),
    "no such adapter": (["--ip-adapter", "a.safetensors", "--ip-adapter-image", "style.png"], "no file a.safetensors"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(run, name):
    options, message = WRONG[name]
    code, error = run("generate", PROMPT, *options)
    assert code == 2 and message in error


def test_scales():
    assert split_scale("a.safetensors:0.7") == ("a.safetensors", 0.7)
    assert split_scale("C:/a.safetensors", default=0.5) == ("C:/a.safetensors", 0.5)
