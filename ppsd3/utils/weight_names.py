"""Names of weights files, as diffusers and transformers write them.

``stem`` is ``diffusion_pytorch_model`` or ``model``, and the variant, if there is one, e.g. ``fp16``:

    stem.safetensors                      stem.fp16.safetensors
    stem-00001-of-00002.safetensors       stem.fp16-00001-of-00002.safetensors
    stem.safetensors.index.json           stem.safetensors.index.fp16.json
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .errors import InputError

# ppdiffusers and PaddleNLP write the last two, in Paddle layout.
STEMS = ("diffusion_pytorch_model", "model", "diffusion_paddle_model", "model_state")
PADDLE_STEMS = STEMS[2:]
# A pickle that ppdiffusers and PaddleNLP write unless told otherwise: stem, suffix. Only conversion reads it.
PDPARAMS = ("model_state", "pdparams")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pdparams", ".pkl", ".pickle")


class WeightName(NamedTuple):
    """Parts of a weights file's name; ``kind`` is "single", "shard" or "index"."""

    stem: str
    variant: str | None
    kind: str


_STEM = rf"(?P<stem>{'|'.join(STEMS)})"
_PATTERNS = {
    "single": re.compile(rf"{_STEM}(?:\.(?P<variant>[^.]+?))?\.safetensors"),
    # Older diffusers put the variant after the numbers.
    "shard": re.compile(rf"{_STEM}(?:\.(?P<variant>[^.]+?))?-\d{{5}}-of-\d{{5}}(?:\.(?P<after>[^.]+))?\.safetensors"),
    "index": re.compile(rf"{_STEM}\.safetensors\.index(?:\.(?P<variant>[^.]+))?\.json"),
}


def weights_file(stem: str, variant: str | None = None, suffix: str = "safetensors") -> str:
    """Name of an unsharded weights file: ``weights_file("model", "fp16") == "model.fp16.safetensors"``."""
    return f"{stem}{_dotted(variant)}.{suffix}"


def shard_file(stem: str, number: int, count: int, variant: str | None = None) -> str:
    """Name of shard ``number`` (from 1) of ``count``: ``model.fp16-00001-of-00002.safetensors``."""
    return f"{stem}{_dotted(variant)}-{number:05d}-of-{count:05d}.safetensors"


def index_file(stem: str, variant: str | None = None, suffix: str = "safetensors") -> str:
    """Name of a sharded checkpoint's index: ``index_file("model", "fp16") == "model.safetensors.index.fp16.json"``."""
    return f"{stem}.{suffix}.index{_dotted(variant)}.json"


def parse_weight_name(name: str) -> WeightName | None:
    """The parts of a file's name, or None if it is not a weights file that ppsd3 reads."""
    for kind in ("shard", "index", "single"):
        match = _PATTERNS[kind].fullmatch(name)
        if match:
            parts = match.groupdict()
            return WeightName(parts["stem"], parts["variant"] or parts.get("after"), kind)
    return None


def is_component_file(name: str) -> bool:
    """Whether a file of this name is what a component is saved as: weights, a configuration, a vocabulary."""
    return name.endswith((".safetensors", ".json", ".txt", ".model", *PICKLE_SUFFIXES))


def is_former_component_file(path: str, new: str, numbered: str = "controlnet") -> bool:
    """Whether the file at ``path``, in the old directory of several components, is replaced by a component in ``new``.

    ``numbered`` is the component of which there may be any number: ``controlnet``, ``controlnet_1``, ... Those that a
    save does not write are no longer there then.
    """
    component, _, rest = path.partition(os.sep)
    saved = os.path.isdir(os.path.join(new, component))
    if not saved and re.fullmatch(rf"{re.escape(numbered)}_\d+", component):
        saved = os.path.isdir(os.path.join(new, numbered))
    return bool(rest) and saved and is_component_file(rest)


def available_variants(names: Iterable[str], stem: str | None = None) -> list[str | None]:
    """Variants of the weights files in ``names``, sorted; None, the weights without a variant, comes first."""
    parsed = [weight for weight in map(parse_weight_name, names) if weight and stem in (None, weight.stem)]
    return sorted({weight.variant for weight in parsed}, key=lambda variant: variant or "")


def choose_variants(files: Mapping[str, Iterable[str]], variant: str | None) -> dict[str, str | None]:
    """The variant to load of each component of a pipeline: ``variant`` where it exists, else the plain weights.

    Published pipelines have half-precision copies of some components only (SD3-medium: the text encoders). If no
    component has the variant, each is given it, so that opening the weights raises the error that lists what there is.

    Args:
        files: component -> names of its files.
    """
    found = {component: available_variants(names) for component, names in files.items()}
    known = any(variant in variants for variants in found.values())
    return {
        component: None if known and variant not in variants and None in variants else variant
        for component, variants in found.items()
    }


def describe_variants(variants: Iterable[str | None]) -> str:
    """``"variant=None, variant='fp16'"`` for an error message."""
    return ", ".join(f"variant={variant!r}" for variant in variants)


def _dotted(variant):
    if variant and not re.fullmatch(r"[\w.-]+", str(variant)):
        raise InputError(f"variant is {variant!r}; it is a part of files' names, of letters, digits, '.', '-' and '_'.")
    return f".{variant}" if variant else ""
