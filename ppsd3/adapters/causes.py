"""Why keys of an adapter's file match no layer: each cause has its own words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import paddle

from ..utils.errors import CheckpointError, CheckpointFormatError, WeightMismatchError
from ..utils.recognition import explain_tensors
from .keys import ModuleNames, component_of, split_key

_SHOWN, _LONGEST = 5, 200  # keys that a message names, and how many of their letters

# Regular expression of a part of a key, with underscores for dots -> the models whose layers it may be, where nothing
# else tells which (:mod:`ppsd3.utils.recognition`).
_MODELS = (
    (r"(down|up|input|output)_blocks_\d|mid(dle)?_block_", "Stable Diffusion 1, 2 or XL"),
    (r"(^|_)blocks_\d+_(self|cross)_attn", "Wan or another video model"),
)

# Regular expression of a key's end -> the kind of adapter that it is of.
_KINDS = (
    (r".*\.[ab][12]\.weight|.*\.bm[12]\.weight", "GLoRA"),
    (r".*\.on_input", "(IA)^3"),
    (r".*\.oft_(diag|[rRs])(\..*)?", "OFT in PEFT's form"),
    (r".*\.vera_lambda_[bd](\..*)?", "VeRA"),
    (r".*\.lora_embedding_[AB](\..*)?", "LoRA of an embedding table"),
    (r".*\.(reshape_weight|set_weight)", "ComfyUI's replaced weights"),
    (r".*\.modules_to_save\..*", "whole modules that PEFT trained beside a LoRA"),
)

_ENCODERS = {"text_encoder": "CLIP-L", "text_encoder_2": "OpenCLIP bigG", "text_encoder_3": "T5-XXL"}


def not_for_these(
    path: str,
    lost: Sequence[str],
    names: ModuleNames,
    networks: Mapping[str, Any],
    tensors: Mapping[str, paddle.Tensor],
    any_fits: bool,
) -> CheckpointError:
    """The error about keys that match no layer.

    Args:
        lost: those keys.
        names: of the layers of ``networks``.
        networks: by component, those that are there.
        tensors: of the file.
        any_fits: whether other keys do match.
    """
    if not lost:
        return CheckpointFormatError(f"{path} changes nothing in {', '.join(networks)}: it is empty.")
    model = _other_model(path, {key: list(tensors[key].shape) for key in lost if key in tensors})
    if model:
        return (WeightMismatchError if any_fits else CheckpointFormatError)(f"{model} Its keys are {_listed(lost)}.")
    causes: dict[str, list[str]] = {}
    for key in lost:
        causes.setdefault(_cause(key, names, networks), []).append(key)
    told = " ".join(f"{cause[0].upper()}{cause[1:]}: {_listed(keys)}." for cause, keys in causes.items())
    if any_fits:
        return WeightMismatchError(
            f"{path} has {len(lost)} keys for which there is no layer here. {told} Pass strict=False to leave them out."
        )
    return CheckpointFormatError(f"{path} changes nothing in {', '.join(networks)}. {told}")


@contextlib.contextmanager
def naming_the_model(path: str, tensors: Mapping[str, Any]) -> Iterator[None]:
    """Where a tensor does not fit its layer, says of which model the adapter is, if it is another."""
    try:
        yield
    except WeightMismatchError as error:
        model = _other_model(path, {key: list(tensor.shape) for key, tensor in tensors.items()})
        if model is None:
            raise
        raise WeightMismatchError(f"{model} {error}") from error


def _other_model(path: str, shapes: Mapping[str, Sequence[int]]) -> str | None:
    """What an adapter with keys of these shapes is, if it is for another model."""
    said = explain_tensors(path, {key: ("", shape) for key, shape in shapes.items()}, wanted="adapter")
    flat = [key.replace(".", "_") for key in shapes]
    model = next((name for pattern, name in _MODELS if any(re.search(pattern, key) for key in flat)), None)
    if said or model is None:
        return said
    return f"{path} is an adapter for {model}. Use it with that; here use one for Stable Diffusion 3 or 3.5."


def _cause(key, names, networks):
    kind = next((kind for pattern, kind in _KINDS if re.fullmatch(pattern, key)), None)
    if kind:
        return f"{kind}, which ppsd3 does not have; merge it into the model where it loads"
    module, part = split_key(key)
    if part == "alpha" and names.find(module):
        return "alphas of layers that the file does not change; download it again, or ask who made it"
    if part is None:
        return "no tensors of an adapter that ppsd3 knows; ask who made the file"
    component = component_of(key)
    if component not in networks and component in _ENCODERS:
        return f"for the {component} ({_ENCODERS[component]}), which is not loaded; load the pipeline with it"
    if component not in networks:
        return f"for a {component}, and this is {', '.join(networks)}"
    similar = names.resembles(module)
    if similar:
        return f"for another size of Stable Diffusion 3: the {similar} has such layers, but not of that number"
    flat = module.replace(".", "_")
    if "_attn2_" in flat:
        return "for SD3.5-medium, which alone has a second attention (attn2) in its blocks; load it into that one"
    if re.search(r"_(norm_(added_)?[qk]|ln_[qk])$", flat):
        return "for SD3.5, which has norms of queries and keys; load it into that one"
    return f"unknown layers of the {component}; ask who made the file"


def _listed(keys):
    shown = (key if len(key) <= _LONGEST else key[:_LONGEST] + "..." for key in keys[:_SHOWN])
    return ", ".join(shown) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
