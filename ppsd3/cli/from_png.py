"""``--from-png``: the settings in a picture as defaults of the options.

A picture may come from a stranger. It sets prompts and numbers, within limits, and nothing else by itself: what names
files to read or to write, models or adapters is used with ``--trust-png`` only, or given on the command line.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from ..utils.errors import InputError
from ..utils.printable import printable
from .options import DEFAULT_MODEL
from .png import read_settings

_PART, _WEIGHT = (0, 1), (-1000, 1000)

# The options that a picture may set, by their names in Python: the least and the most that a number may be; None for
# texts for the text encoders, and for choices and switches that argparse knows. Any other option, and each new one, is
# one that it may not set.
SAFE: dict[str, tuple[float, float] | None] = {
    "prompt": None,
    "prompt_2": None,
    "prompt_3": None,
    "negative_prompt": None,
    "negative_prompt_2": None,
    "negative_prompt_3": None,
    "seed": (-(2**63), 2**64 - 1),
    "height": (16, 16384),
    "width": (16, 16384),
    "num_inference_steps": (1, 1000),
    "sigmas": (0, 1),
    "timesteps": (0, 1000),
    "mu": _WEIGHT,
    "strength": _PART,
    "guidance_scale": _WEIGHT,
    "clip_skip": (0, 1000),
    "max_sequence_length": (1, 512),
    "skip_guidance_layers": (0, 1000),
    "skip_layer_guidance_scale": _WEIGHT,
    "skip_layer_guidance_start": (-1, 1),
    "skip_layer_guidance_stop": (0, 1),
    "padding_mask_crop": (0, 16384),
    "mask_blur": (0, 1000),
    "controlnet_conditioning_scale": _WEIGHT,
    "control_guidance_start": _PART,
    "control_guidance_end": _PART,
    "canny_8b": None,
    "control_processor": None,
    "dtype": None,
    "quantize": None,
    "cache": None,
    "scheduler": None,
    "on_demand": None,
    "without_t5": None,
    "prompt_weighting": None,
}

NOTES = ("command", "ppsd3_version")  # settings that are no options
_MOST_VALUES = 1000  # of one option

# Command -> names of settings in PNG files of version 0.1 -> what they are called now.
_RENAMED = {
    "control": {
        "control_scale": "controlnet_conditioning_scale",
        "control_start": "control_guidance_start",
        "control_end": "control_guidance_end",
        "mask": "control_mask",
    },
    "inpaint": {"mask": "mask_image"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`take_settings` reads."""
    parser.add_argument(
        "--from-png", metavar="FILE", help="take prompts and numbers from a picture that ppsd3 drew; options given win"
    )
    parser.add_argument(
        "--trust-png", action="store_true", help="with --from-png: use the model and the files that it names, too"
    )


def take_settings(parser: argparse.ArgumentParser, rest: list[str], command: str) -> None:
    """Makes the settings in the file of ``--from-png``, which the arguments ``rest`` name, the parser's defaults.

    Raises:
        InputError: the file is no PNG of ppsd3's, another command drew it, it has a setting that no option has or that
            the option does not take, or one that is not safe, without ``--trust-png``.
    """
    given = _given(parser, rest)
    path = given["from_png"]
    options = {action.dest: action for action in parser._actions}
    settings = {
        name: value
        for name, value in _settings(path, command).items()
        if name not in given and name not in NOTES and not (name in options and value == options[name].default)
    }
    unknown = [name for name in settings if name not in options]
    if unknown:
        raise InputError(f"{path} has the setting {printable(unknown[0])}, which no option of this version has.")
    foreign = {options[name].option_strings[0]: value for name, value in settings.items() if name not in SAFE}
    if foreign and not given.get("trust_png"):
        listed = ", ".join(f"{option} {printable(value)}" for option, value in foreign.items())
        raise InputError(
            f"{path} has options that a picture may not set by itself, as they may name files and models: {listed}. "
            "Give them yourself, or, if you know where it comes from, use all of them with --trust-png."
        )
    parser.set_defaults(**{name: _checked(path, options[name], value) for name, value in settings.items()})


def needs_trust(settings: dict[str, Any]) -> list[str]:
    """Names of the settings that are used with ``--trust-png`` only; the bundled model needs none."""
    return [
        name
        for name, value in settings.items()
        if name not in SAFE and name not in NOTES and (name, value) != ("model", DEFAULT_MODEL)
    ]


def _settings(path, command):
    settings = read_settings(path)
    drawn_by = settings.get("command", "generate")
    if drawn_by != command:
        raise InputError(f"{path} was drawn by `ppsd3 {printable(drawn_by)}`. Use that command with --from-png.")
    renamed = _RENAMED.get(command, {})
    return {renamed.get(name, name): value for name, value in settings.items()}


def _given(parser, rest):
    """dict: name -> value of the options that ``rest`` gives, without defaults."""
    defaults = [(action, action.default) for action in parser._actions]
    for action, _ in defaults:
        action.default = argparse.SUPPRESS
    try:
        return vars(parser.parse_known_args(rest)[0])
    finally:
        for action, default in defaults:
            action.default = default


def _checked(path, action, value):
    """``value`` as the option would have it.

    Raises:
        InputError: the option does not take it.
    """
    kind = action.type if action.type in (int, float) else str
    is_list = action.nargs == "+" or type(action).__name__ == "_AppendAction"
    values = value if isinstance(value, list) else [value]
    least, most = SAFE.get(action.dest) or (-math.inf, math.inf)
    wanted = "True" if action.nargs == 0 else {str: "text", int: "whole numbers", float: "numbers"}[kind]
    if kind is not str:
        wanted += f" from {least} to {most}"
    if action.choices is not None:
        wanted = f"one of {', '.join(action.choices)}"

    def fits(item):
        if action.nargs == 0:
            return item is True
        if kind is str:
            return isinstance(item, str) and (action.choices is None or item in action.choices)
        numbers = (int, float) if kind is float else (int,)
        return isinstance(item, numbers) and not isinstance(item, bool) and least <= item <= most

    if not 0 < len(values) <= (_MOST_VALUES if is_list else 1) or not all(fits(item) for item in values):
        option = (action.option_strings or [action.dest.upper()])[0]
        raise InputError(
            f"{path} has {option} {printable(value)[:100]}, and a picture can set {wanted}. Give the option yourself."
        )
    return value if is_list or not isinstance(value, list) else values[0]
