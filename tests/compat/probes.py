"""Reads the probes of a ``.txt`` beside this file and runs them.

A line is a probe: Python, statements separated by ``; ``, in which the names of :class:`Names` can be used. After it
may stand, separated by two spaces:

- ``-> English | Chinese``: it does something else than in the other library, and what.
- ``-> needs MODULE``: it is run only where that can be imported.

``# English | Chinese`` begins a section.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import pathlib
import re
import warnings
from typing import NamedTuple

import numpy as np
import paddle
from helpers import loras, originals, tiny
from PIL import Image

import ppsd3
from ppsd3.serialization.writers import write_tensors
from ppsd3.utils.errors import PPSD3Error

HERE = pathlib.Path(__file__).parent
LIBRARIES = ("ppdiffusers", "diffusers")
CONTROL = {**tiny.TRANSFORMER, "num_layers": 1, "force_zeros_for_pooled_projection": False}


class Probe(NamedTuple):
    """A line of a file: the code, and the difference in English and Chinese, None if there is none."""

    code: str
    difference: tuple[str, str] | None
    needs: str | None


class Section(NamedTuple):
    """A part of a file."""

    title: tuple[str, str]
    probes: list[Probe]


class Outcome(NamedTuple):
    """What came of a probe: "works", "refused" or "raw error"; the error's message."""

    kind: str
    message: str


def read(library):
    """The sections of the probes for ``library``."""
    sections = []
    for line in (HERE / f"{library}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            sections.append(Section(_pair(line[2:]), []))
        elif line.strip():
            code, _, note = line.partition("  -> ")
            needs = note[len("needs ") :].strip() if note.startswith("needs ") else None
            difference = _pair(note) if note and needs is None else None
            sections[-1].probes.append(Probe(code.strip(), difference, needs))
    return sections


def _pair(text):
    english, chinese = text.split(" | ")
    return english.strip(), chinese.strip()


class Names:
    """What the probes find: each is made for the probe that names it, in a directory that all share.

    pipe, i2i, inpaint, control, controls: pipelines of each kind over a tiny model, ready to draw.
    CHECKPOINT, SINGLE, LORA, EMBEDDING: a pipeline's directory, a single file, a LoRA's directory, a word's file.
    W: a path that nothing is at yet. picture, mask: PIL pictures. lora: a LoRA's tensors. tokens: ids of a prompt.
    few: arguments of a call that is over soon.
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.CHECKPOINT = str(self.directory / "checkpoint")
        self.SINGLE = str(self.directory / "single.safetensors")
        self.LORA = str(self.directory / "lora")
        self.EMBEDDING = str(self.directory / "cat.safetensors")
        self.CONTROLNET = str(self.directory / "controlnet")
        self._count = 0
        pipe = tiny.make_pipeline()
        pipe.save_pretrained(self.CHECKPOINT)
        tensors = {name: paddle.to_tensor(array) for name, array in loras.for_pipeline(pipe).items()}
        self._write(self.LORA + "/pytorch_lora_weights.safetensors", tensors)
        self._write(self.EMBEDDING, {"clip_l": paddle.ones([1, 16]), "clip_g": paddle.ones([1, 12])})
        originals.single_file(pathlib.Path(self.CHECKPOINT), pathlib.Path(self.SINGLE))
        tiny.randomize(ppsd3.SD3ControlNetModel(**CONTROL), 30, 0.5).eval().save_pretrained(self.CONTROLNET)

    def _write(self, path, tensors):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            write_tensors(file, tensors, {"format": "pt"})

    def of(self, code):
        """name -> object, for the names that ``code`` uses."""
        found = {"ppsd3": ppsd3, "paddle": paddle, "np": np, "Image": Image, "few": {"num_inference_steps": 2}}
        for name in set(re.findall(r"[A-Za-z_]\w*", code)):
            if isinstance(getattr(self, name, None), str):
                found[name] = getattr(self, name)
            elif name in _MADE:
                found[name] = _MADE[name](self)
        return found

    def fresh_path(self):
        """Alone in a directory, so that no other path is like it."""
        self._count += 1
        parent = self.directory / f"new{self._count}"
        parent.mkdir()
        return str(parent / "W")

    def shown(self, message):
        """``message`` without what differs from run to run."""
        message = message.replace(os.getcwd() + os.sep, "")
        message = re.sub(re.escape(str(self.directory)) + r"/new\d+/W", "W", message)
        message = re.sub(re.escape(str(self.directory)) + r"/new\d+", "the directory", message)
        for name in ("CHECKPOINT", "SINGLE", "LORA", "EMBEDDING", "CONTROLNET"):
            message = message.replace(getattr(self, name), name)
        return re.sub(r"\s+", " ", re.sub(r" at 0x[0-9a-f]+", "", message)).strip()


def _pipeline(names):
    return ppsd3.StableDiffusion3Pipeline.from_pretrained(names.CHECKPOINT)


def _control(names):
    net = ppsd3.SD3ControlNetModel.from_pretrained(names.CONTROLNET)
    return ppsd3.StableDiffusion3ControlNetPipeline.from_pipe(_pipeline(names), controlnet=net)


def _picture(names):
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (tiny.SIDE, tiny.SIDE, 3)).astype("uint8"))


def _mask(names):
    return Image.fromarray(np.eye(tiny.SIDE, dtype="uint8") * 255)


_MADE = {
    "pipe": _pipeline,
    "i2i": lambda names: ppsd3.StableDiffusion3Img2ImgPipeline.from_pipe(_pipeline(names)),
    "inpaint": lambda names: ppsd3.StableDiffusion3InpaintPipeline.from_pipe(_pipeline(names)),
    "pag": lambda names: ppsd3.StableDiffusion3PAGPipeline.from_pipe(_pipeline(names)),
    "control": _control,
    "picture": _picture,
    "mask": _mask,
    "lora": lambda names: loras.for_pipeline(_pipeline(names)),
    "tokens": lambda names: _pipeline(names).tokenizer("a red circle"),
    "W": lambda names: names.fresh_path(),
}


def run(probe, names):
    """The outcome of ``probe``; one that needs what is not installed counts as working."""
    if probe.needs and importlib.util.find_spec(probe.needs) is None:
        return Outcome("works", "")
    paddle.seed(0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                code = compile("\n".join(_statements(probe.code)), "<probe>", "exec")
                exec(code, names.of(probe.code))
        except PPSD3Error as error:
            return Outcome("refused", names.shown(str(error)))
        except Exception as error:  # noqa: BLE001 (that there are none is what is tested)
            return Outcome("raw error", names.shown(f"{type(error).__name__}: {error}"))
    return Outcome("works", "")


def _statements(code):
    return code.split("; ")
