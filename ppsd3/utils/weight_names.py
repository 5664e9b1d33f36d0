"""What weights files are called: the names that diffusers and transformers write.

``stem`` is ``diffusion_pytorch_model`` or ``model``, and the variant, if there is one, e.g. ``fp16``:

    stem.safetensors                      stem.fp16.safetensors
    stem-00001-of-00002.safetensors       stem.fp16-00001-of-00002.safetensors
    stem.safetensors.index.json           stem.safetensors.index.fp16.json
"""

import re
from collections import namedtuple

# ppdiffusers and PaddleNLP write the last two, in Paddle layout.
STEMS = ("diffusion_pytorch_model", "model", "diffusion_paddle_model", "model_state")
PADDLE_STEMS = STEMS[2:]
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pdparams", ".pkl", ".pickle")

WeightName = namedtuple("WeightName", "stem variant kind")
WeightName.__doc__ = "Parts of a weights file's name; variant may be None, kind is 'single', 'shard' or 'index'."

_STEM = rf"(?P<stem>{'|'.join(STEMS)})"
_PATTERNS = {
    "single": re.compile(rf"{_STEM}(?:\.(?P<variant>[^.]+?))?\.safetensors"),
    # Older diffusers put the variant after the numbers.
    "shard": re.compile(rf"{_STEM}(?:\.(?P<variant>[^.]+?))?-\d{{5}}-of-\d{{5}}(?:\.(?P<after>[^.]+))?\.safetensors"),
    "index": re.compile(rf"{_STEM}\.safetensors\.index(?:\.(?P<variant>[^.]+))?\.json"),
}


def weights_file(stem, variant=None):
    """Name of an unsharded weights file: ``weights_file("model", "fp16") == "model.fp16.safetensors"``."""
    return f"{stem}{_dotted(variant)}.safetensors"


def shard_file(stem, number, count, variant=None):
    """Name of shard ``number`` (from 1) of ``count``: ``model.fp16-00001-of-00002.safetensors``."""
    return f"{stem}{_dotted(variant)}-{number:05d}-of-{count:05d}.safetensors"


def index_file(stem, variant=None):
    """Name of a sharded checkpoint's index: ``index_file("model", "fp16") == "model.safetensors.index.fp16.json"``."""
    return f"{stem}.safetensors.index{_dotted(variant)}.json"


def parse_weight_name(name):
    """WeightName of a file's name, or None if it is no weights file that ppsd3 reads."""
    for kind in ("shard", "index", "single"):
        match = _PATTERNS[kind].fullmatch(name)
        if match:
            parts = match.groupdict()
            return WeightName(parts["stem"], parts["variant"] or parts.get("after"), kind)
    return None


def available_variants(names, stem=None):
    """Variants that the files called ``names`` hold, sorted; None, the one without a name, comes first."""
    parsed = [weight for weight in map(parse_weight_name, names) if weight and stem in (None, weight.stem)]
    return sorted({weight.variant for weight in parsed}, key=lambda variant: variant or "")


def choose_variants(files, variant):
    """The variant to load of each component of a pipeline: the one asked for where it is, else the plain weights.

    Published pipelines have copies in half precision of some components alone (SD3-medium: the text encoders). If no
    component has the variant, each keeps it, and whoever opens the weights says what there is.

    Args:
        files (dict of str to list of str): component -> names of its files.
        variant (str or None): as asked for.
    """
    found = {component: available_variants(names) for component, names in files.items()}
    known = any(variant in variants for variants in found.values())
    return {
        component: None if known and variant not in variants and None in variants else variant
        for component, variants in found.items()
    }


def describe_variants(variants):
    """``"variant=None, variant='fp16'"`` for an error message."""
    return ", ".join(f"variant={variant!r}" for variant in variants)


def _dotted(variant):
    return f".{variant}" if variant else ""
