"""``ppsd3 convert``: the arguments reach the conversion, and its errors the user."""

import os

import pytest
from helpers.originals import read

import ppsd3
from ppsd3.cli.main import main
from ppsd3.serialization import Checkpoint


def test_there_and_back(tiny_checkpoint, tmp_path, capsys):
    file, directory = str(tmp_path / "sd3.safetensors"), str(tmp_path / "sd3")
    assert main(["convert", str(tiny_checkpoint), file, "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.strip() == file
    assert {value.dtype for value in read(file).values()} == {"bfloat16"}
    options = ["--config", str(tiny_checkpoint), "--without", "text_encoder_3", "--to", "ppdiffusers"]
    options += ["--dtype", "float32", "--variant", "x", "--max-shard-size", "30KB"]
    assert main(["convert", file, directory, *options]) == 0
    assert "diffusion_paddle_model.safetensors.index.x.json" in os.listdir(tmp_path / "sd3" / "transformer")
    assert ppsd3.StableDiffusion3Pipeline.from_pretrained(directory, variant="x").text_encoder_3 is None
    assert main(["convert", directory, str(tmp_path / "back.safetensors"), "--source-variant", "x"]) == 0
    assert not any("t5xxl" in name for name in read(tmp_path / "back.safetensors"))


def test_a_text_encoder_from_another_file(tiny_checkpoint, tmp_path):
    parts = {"clip_l": "text_encoder", "vae": "vae"}
    for name, component in parts.items():
        main(["convert", str(tiny_checkpoint / component), str(tmp_path / f"{name}.safetensors")])
    main(["convert", str(tiny_checkpoint / "transformer"), str(tmp_path / "transformer.safetensors")])
    arguments = [str(tmp_path / "transformer.safetensors"), str(tmp_path / "whole"), "--config", str(tiny_checkpoint)]
    arguments += ["--text-encoder", str(tmp_path / "clip_l.safetensors"), "--vae", str(tmp_path / "vae.safetensors")]
    assert main(["convert", *arguments, "--without", "text_encoder_2", "text_encoder_3"]) == 0
    names = Checkpoint.open(str(tmp_path / "whole" / "text_encoder"), "model").keys()
    assert "text_projection.weight" in names


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--without", "vae"], "--without vae: name text_encoder"),
        (["--without", "text_encoder", "--text-encoder", "x"], "--without text_encoder"),
        (["--to", "original"], "does not go with the layout 'original'"),
    ],
)
def test_what_cannot_be_used(tiny_checkpoint, tmp_path, capsys, arguments, message):
    assert main(["convert", str(tiny_checkpoint), str(tmp_path / "x"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
