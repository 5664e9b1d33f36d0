"""Whatever people bring, and whichever door they bring it to: the error names the file, what it is, and the remedy."""

import re

import pytest
from helpers import strangers, tiny

import ppsd3
from ppsd3.loaders.conversion import convert
from ppsd3.utils.errors import PPSD3Error

SINGLE_FILE = {
    "pipeline": lambda path, _: ppsd3.StableDiffusion3Pipeline.from_single_file(path),
    "transformer": lambda path, _: ppsd3.SD3Transformer2DModel.from_single_file(path),
    "VAE": lambda path, _: ppsd3.AutoencoderKL.from_single_file(path),
    "CLIP": lambda path, _: ppsd3.CLIPTextModelWithProjection.from_single_file(path, subfolder="text_encoder"),
    "T5": lambda path, _: ppsd3.T5EncoderModel.from_single_file(path),
    "ControlNet": lambda path, _: ppsd3.SD3ControlNetModel.from_single_file(path),
}
DIRECTORY = {
    "pipeline's directory": lambda path, _: ppsd3.StableDiffusion3Pipeline.from_pretrained(path),
    "any pipeline's directory": lambda path, _: ppsd3.DiffusionPipeline.from_pretrained(path),
    "transformer's directory": lambda path, _: ppsd3.SD3Transformer2DModel.from_pretrained(path),
    "tokenizer's directory": lambda path, _: ppsd3.CLIPTokenizer.from_pretrained(path),
    "T5 tokenizer's directory": lambda path, _: ppsd3.T5Tokenizer.from_pretrained(path),
    "scheduler's directory": lambda path, _: ppsd3.FlowMatchEulerDiscreteScheduler.from_pretrained(path),
}
ADAPTER = {
    "LoRA": lambda path, pipe: pipe.load_lora_weights(path),
    "word": lambda path, pipe: pipe.load_textual_inversion(path),
    "IP-adapter": lambda path, pipe: pipe.load_ip_adapter(path, image_encoder_folder=None),
}
OTHER = {"convert": lambda path, _: convert(path, path + ".new.safetensors")}
DOORS = {**SINGLE_FILE, **DIRECTORY, **ADAPTER, **OTHER}


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def refusal(door, path, pipe):
    """The message of the error at a door."""
    with pytest.raises(PPSD3Error) as caught:
        door(str(path), pipe)
    return " ".join(str(caught.value).split())


def wrong(message, path, what, remedy):
    """What a message lacks."""
    missing = [str(path)] if str(path) not in message else []
    return missing + [part for part in (what, remedy) if not re.search(part, message)]


@pytest.mark.parametrize("door", DOORS)
def test_a_strange_file_is_named_with_its_kind_and_the_remedy(tmp_path, pipe, door):
    faults = []
    for kind, (name, content, what, remedy) in strangers.FILES.items():
        if door == "convert" and kind == "pdparams":
            continue  # the one pickle that it reads
        path = tmp_path / name
        path.write_bytes(content)
        message = refusal(DOORS[door], path, pipe)
        lacks = wrong(message, path, what, remedy)
        faults += [f"{kind}: no {lacks} in {message}"] if lacks else []
        path.unlink()
    assert not faults, "\n".join(faults)
