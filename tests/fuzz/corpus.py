"""Sound inputs that kinds begin with: the tiny networks of ``helpers.tiny``, some smaller still."""

from __future__ import annotations

import contextlib
import io
import json
import os
import unicodedata

import numpy as np
from helpers import ip_adapters, tiny

from .case import Wrong

SMALL = {**tiny.TRANSFORMER, "num_layers": 1, "sample_size": 8, "pos_embed_max_size": 8}
SMALL_VAE = {**tiny.VAE, "block_out_channels": (4,), "norm_num_groups": 2, "layers_per_block": 1}
SMALL_VAE.update(down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",))
ONE_LAYER = {"num_hidden_layers": 1}


def networks():
    """dict: name -> a network of each class, of a few kilobytes."""
    import ppsd3

    made = {
        "transformer": ppsd3.SD3Transformer2DModel(**SMALL),
        "vae": ppsd3.AutoencoderKL(**SMALL_VAE),
        "text_encoder": ppsd3.CLIPTextModelWithProjection(**{**tiny.CLIP_L, **ONE_LAYER}, **tiny.CLIP_IDS),
        "text_encoder_3": ppsd3.T5EncoderModel(**{**tiny.T5, "num_layers": 1}),
        "controlnet": ppsd3.SD3ControlNetModel(
            **{name: value for name, value in SMALL.items() if name != "num_layers"}, num_layers=1
        ),
        "image_encoder": ppsd3.SiglipVisionModel(**{**ip_adapters.SIGLIP, **ONE_LAYER}),
        "small_vae": ppsd3.AutoencoderTiny(
            encoder_block_out_channels=(4, 4),
            decoder_block_out_channels=(4, 4),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
    }
    for seed, network in enumerate(made.values()):
        tiny.randomize(network, seed)
        network.eval()
    return made


def link(source, target):
    """Puts the files of the directory ``source`` into ``target``, which is made; a change means to unlink first."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_dir():
            link(file, target / file.name)
        else:
            os.link(file, target / file.name)


def replace(path, data):
    """Makes ``path`` hold ``data`` without touching the file that it is a link to."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


# An independent reader of safetensors files

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
    "BOOL": "?", "BF16": "<u2", "U16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1",
}  # fmt: skip


def read_safetensors(data):
    """dict: name -> (dtype in the format, array), of what the format calls a file; ValueError for everything else.

    By the format's own words: ranges that cover the data once, without gaps, in the order of their offsets.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError("the header ends after the file")
    header = json.loads(data[8 : 8 + length].decode("utf-8"))
    body, position, found = data[8 + length :], 0, {}
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != position or stop < start or stop > len(body):
            raise ValueError(f"{name} does not begin where the one before it ends")
        position = stop
        array = np.frombuffer(body[start:stop], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        found[name] = entry["dtype"], array
    if position != len(body):
        raise ValueError("bytes that belong to no tensor")
    return found


def as_float32(code, array):
    """The values of an array of :func:`read_safetensors`; None for the 8-bit floats."""
    if code.startswith("F8"):
        return None
    if code in ("BF16", "U16"):
        return (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        return array.astype(np.float32)


# A whole pipeline, and the command line


def pipeline(directory=None):
    """A complete pipeline of one layer each, whose pictures of 16 pixels a side take a few milliseconds; saved into
    ``directory``."""
    from ppsd3 import StableDiffusion3Pipeline

    parts = tiny.make_components(num_layers=1)
    for name in ("text_encoder", "text_encoder_2"):
        config = {**parts[name].config, **ONE_LAYER}
        parts[name] = tiny.randomize(type(parts[name])(**config), 1)
    parts["text_encoder_3"] = tiny.randomize(type(parts["text_encoder_3"])(**{**tiny.T5, "num_layers": 1}), 2)
    pipe = StableDiffusion3Pipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    if directory is not None:
        pipe.save_pretrained(directory)
    return pipe


SMALL_CALL = {"num_inference_steps": 1, "height": 16, "width": 16}
SMALL_OPTIONS = ("--steps", "1", "--height", "16", "--width", "16", "--quiet")


def command(*arguments):
    """Runs ``ppsd3 ARGUMENTS`` in this process; what it refuses is raised as InputError, and a defect as it was."""
    from ppsd3.cli.main import main
    from ppsd3.utils.errors import InputError

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse's
        code = error.code
    text = printed.getvalue()
    raw = sorted({letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf") and letter not in "\n\t\r"})
    if raw:
        raise Wrong(f"control characters are printed as they are: {raw} in {text[-200:]!r}")
    if code == 1:
        main([*(str(argument) for argument in arguments), "--debug"])  # which raises it
        raise RuntimeError(text)
    if code:
        raise InputError(text)
