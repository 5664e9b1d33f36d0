"""Command lines: every option of the commands with values that nobody should give, and prompt files."""

from __future__ import annotations

import argparse
import importlib
import os

from .. import corpus, mutation
from ..case import Case
from . import png

COMMANDS = ("generate", "img2img", "inpaint", "control", "info", "convert", "export")
_METAVARS = {"COMMAND", "PROMPT", "CHECKPOINT", "SOURCE", "TARGET", "unrecognized arguments"}
_OWN = ("--output", "--quiet", "--help", "--debug", "--preview", "--from-png")


class Kind:
    def __init__(self, directory):
        self.model = directory / "model"
        corpus.pipeline(self.model)
        self.picture = directory / "picture.png"
        self.picture.write_bytes(png.SIGNATURE + b"".join(png.picture()))
        self.garbage = directory / "garbage.safetensors"
        self.garbage.write_bytes(b"\0" * 100)
        (directory / "empty").mkdir()
        self.files = [self.model, self.picture, self.garbage, directory / "empty", "/dev/null", directory / "absent"]
        self.files += [
            self.model / "vae" / "config.json",
            self.model / "transformer" / "diffusion_pytorch_model.safetensors",
        ]
        self.options = {name: _options(name) for name in COMMANDS}

    def case(self, rng, place):
        name = rng.choice(COMMANDS)
        line = self._sound(name, place)
        chosen = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            if not self.options[name]:
                break
            option = rng.choice(self.options[name])
            count = 0 if option.nargs == 0 else rng.choice((1, 1, 1, 2)) if option.nargs else 1
            values = [self._value(rng) for _ in range(count)]
            chosen.append((option.option_strings[0], *values))
        if name in ("generate", "img2img") and rng.random() < 0.2:
            file = place / "prompts.txt"
            file.write_bytes(_prompt_file(rng))
            line = [part for part in line if part != "a red circle"]
            chosen.append(("--prompt-file", file))
        if rng.random() < 0.3:
            at = rng.randrange(1, len(line))
            if place not in (line[at], *getattr(line[at], "parents", ())):  # where something is written
                line[at] = self._value(rng)
        line += [part for some in chosen for part in some]
        line = [_possible(part) for part in line]
        names = {option.option_strings[0][2:].replace("-", "_") for option in self.options[name]} | _METAVARS
        for part in line[1:]:  # a refusal may name what stands on the line in place of the option
            forms = {part, os.path.expanduser(part), part.rpartition(":")[0], " ".join(part.split())}
            names |= forms if len(part.strip()) > 1 else {f" {part} ", f" {part}/", "(looked for "}
        names.discard("")
        return Case(lambda: corpus.command(*line), tuple(names), repr([str(part)[:60] for part in line]))

    def _sound(self, name, place):
        small = list(corpus.SMALL_OPTIONS)
        drawing = ["--model", self.model, "--output", place / "new.png", *small]
        return {
            "generate": ["generate", "a red circle", *drawing],
            "img2img": ["img2img", "a red circle", "--image", self.picture, *drawing],
            "inpaint": ["inpaint", "a red circle", "--image", self.picture, "--mask", self.picture, *drawing],
            "control": ["control", "a red circle", "--control-image", self.picture, *drawing],
            "info": ["info", self.model],
            "convert": ["convert", self.model / "vae", place / "new"],
            "export": ["export", self.garbage, place / "exported"],
        }[name]

    def _value(self, rng):
        choice = rng.randrange(5)
        if choice == 0:
            return rng.choice(self.files)
        if choice == 1:
            return str(mutation.number(rng))
        if choice == 2:
            return f"{rng.choice(self.files)}:{mutation.number(rng)}"
        return mutation.text(rng)


def _options(name):
    """The options of a command that take hostile values."""
    module = importlib.import_module(f"ppsd3.cli.{name}")
    parser = argparse.ArgumentParser(add_help=False)
    module.add_arguments(parser)
    return [action for action in parser._actions if action.option_strings and action.option_strings[0] not in _OWN]


def _possible(part):
    """``part`` as a program can be given it: without NUL, and with surrogates only where bytes were no UTF-8."""
    return str(part).replace("\0", "").encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")[:100_000]


def _prompt_file(rng):
    lines = [mutation.text(rng).encode("utf-8", "surrogatepass") for _ in range(rng.choice((0, 1, 3)))]
    data = b"\n".join(lines)
    return rng.choice((data, data, data, b"\xff\xfe" + data, rng.randbytes(50), b"\n" * 1000, b"a" * 100_000))
