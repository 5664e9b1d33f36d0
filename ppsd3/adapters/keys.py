"""Names of an adapter's tensors in files: programs differ in prefixes, suffixes and module names.

A key is ``<prefix><module><suffix>``. The suffix tells which tensor it is; prefix and module are compared with dots
replaced by underscores, as kohya's scripts write them, so that one table per network serves all dialects:

- diffusers and PEFT: ``transformer.transformer_blocks.0.attn.to_q.lora_A.weight``
- diffusers before PEFT: ``….attn.processor.to_q_lora.down.weight``, ``….q_proj.lora_linear_layer.down.weight``
- kohya's sd-scripts: ``lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight``, ``lora_te1_…``
- ComfyUI: ``diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight``, ``text_encoders.clip_l.transformer.…``
- LyCORIS: ``lycoris_transformer_blocks_0_attn_to_q.hada_w1_a``, ``.lokr_w1``, ``.diff``, ``.w_norm``
- OneTrainer: ``transformer.joint_blocks.0.x_block.attn.qkv.0.lora_down.weight``, where 0, 1 and 2 are Q, K and V;
  ``clip_l.text_model.…``, ``t5.encoder.…``

Module names of the original layout come from :mod:`ppsd3.serialization.sd3_keys`. Where it concatenates Q, K and V, the
rows of an adapter are split among them; where it has the halves of a modulation swapped, the rows are swapped too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ..serialization.sd3_keys import original_table, to_original

# Component of the pipeline -> prefixes of its keys, with underscores for dots.
PREFIXES = {
    "transformer": (
        *("transformer_", "lora_unet_", "lora_transformer_", "lycoris_", "diffusion_model_", "model_diffusion_model_"),
        *("base_model_model_", "transformer_base_model_model_", "unet_", ""),
    ),
    "text_encoder": (
        *("text_encoder_", "lora_te1_", "lora_te_"),
        *("text_encoders_clip_l_transformer_", "clip_l_transformer_", "clip_l_"),
    ),
    "text_encoder_2": (
        *("text_encoder_2_", "lora_te2_"),
        *("text_encoders_clip_g_transformer_", "clip_g_transformer_", "clip_g_"),
    ),
    "text_encoder_3": (
        *("text_encoder_3_", "lora_te3_"),
        *("text_encoders_t5xxl_transformer_", "t5xxl_transformer_", "t5_"),
    ),
}

# Regular expression of a key's end -> which tensor of the adapter it is.
_SUFFIXES = (
    (r"\.lora_A(?:\.[^.]+)?\.weight", "down"),
    (r"\.lora_B(?:\.[^.]+)?\.weight", "up"),
    (r"\.lora_B(?:\.[^.]+)?\.bias", "bias"),
    (r"(?:\.|_)lora(?:\.|_|_linear_layer\.)down\.weight", "down"),
    (r"(?:\.|_)lora(?:\.|_|_linear_layer\.)up\.weight", "up"),
    (r"(?:_lora|\.lora|\.lora_linear_layer)?\.(?:lora_)?alpha", "alpha"),
    (r"\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?", "magnitude"),
    (r"\.dora_scale", "magnitude"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|diff(?:_b)?|[wb]_norm|oft_blocks|rescale)", None),
)
_SUFFIX = [(re.compile(f"(.+?){pattern}"), part) for pattern, part in _SUFFIXES]

# Modules as diffusers before PEFT called them.
_OLD_NAMES = {"self_attn_to_q": "self_attn_q_proj", "self_attn_to_k": "self_attn_k_proj"}
_OLD_NAMES.update({"self_attn_to_v": "self_attn_v_proj", "self_attn_to_out": "self_attn_out_proj"})


# Regular expression of a key -> the program whose names it has; the first match counts.
_DIALECTS = (
    (r"lora_(unet|te|te[123]|transformer)_.*", "kohya's sd-scripts"),
    (r"lycoris_.*", "LyCORIS"),
    (r"(transformer\.joint_blocks|clip_[lg]\.text_model|t5\.encoder|bundle_emb)\..*", "OneTrainer"),
    (r"(diffusion_model|model\.diffusion_model|text_encoders)\..*", "ComfyUI"),
    (r".*(\.processor\.|\.lora_linear_layer\.|_lora\.(down|up)\.).*", "diffusers before PEFT"),
    (r".*\.lora_[AB]\..*", "diffusers and PEFT"),
)
# Tensor of an adapter -> the kind that has it; earlier entries are more specific.
_KINDS = {"magnitude": "DoRA", "lokr_w1": "LoKr", "lokr_w1_a": "LoKr", "hada_w1_a": "LoHa", "down": "LoRA"}
_KINDS.update({"oft_blocks": "OFT", "diff": "full matrices", "w_norm": "norms"})
# OneTrainer's embeddings in a LoRA's file: word and encoder.
_BUNDLED = re.compile(r"bundle_emb\.(.+)\.(clip_l|clip_g|t5)(_out)?")


class Place(NamedTuple):
    """A layer of a network, and which rows of the key's tensor belong to it.

    Attributes:
        module: name in the network.
        rows: pairs (index, count): the ``index``-th of ``count`` equal parts, one after the other.
    """

    module: str
    rows: tuple[tuple[int, int], ...] = ((0, 1),)


def split_key(key: str) -> tuple[str, str | None]:
    """``(module with prefix, tensor)`` of a key, e.g. "down" or "lokr_w1"; ``(key, None)`` if it has no such suffix."""
    for pattern, part in _SUFFIX:
        match = pattern.fullmatch(key)
        if match:
            return match.group(1), part or match.group(2)
    return key, None


def bundled_word(key: str) -> tuple[str, str] | None:
    """``(word, part)`` of an embedding beside an adapter, ``bundle_emb.<cat>.clip_l``; part is "clip_l", "clip_g",
    "t5", or with "_out" at its end a vector that is added to the encoder's output. None for another key."""
    match = _BUNDLED.fullmatch(key)
    return (match.group(1), match.group(2) + (match.group(3) or "")) if match else None


def dialect(key: str) -> str:
    """The program whose names an adapter's key has, e.g. "ComfyUI"; "LyCORIS" if no other matches."""
    return next((name for pattern, name in _DIALECTS if re.fullmatch(pattern, key)), "LyCORIS")


def adapter_kind(tensors: Collection[str]) -> str:
    """The kind of adapter with these tensors (named by :func:`split_key`): "LoRA", "DoRA", "LoHa", ..."""
    return next((kind for tensor, kind in _KINDS.items() if tensor in tensors), "adapter")


def component_of(key: str) -> str:
    """The component that the prefix of a key names, whether or not it has such a layer."""
    flat = key.replace(".", "_")
    found = ((prefix, name) for name, prefixes in PREFIXES.items() for prefix in prefixes if flat.startswith(prefix))
    return max(found, key=lambda match: len(match[0]))[1]


class ModuleNames:
    """Finds the layers that keys name.

    Args:
        modules: component -> names of its layers that adapters can change.
    """

    def __init__(self, modules: Mapping[str, Iterable[str]]) -> None:
        self._places = {component: _places(component, names) for component, names in modules.items()}
        self._numberless: dict[str, set[str]] | None = None

    def find(self, name: str) -> tuple[str, list[Place]] | None:
        """``(component, places)`` of a module's name with its prefix; None if no network has it."""
        for component, flat in self._readings(name):
            if flat in self._places[component]:
                return component, self._places[component][flat]
        return None

    def resembles(self, name: str) -> str | None:
        """The component that has a layer of that name but for the numbers in it, or None."""
        if self._numberless is None:
            self._numberless = {component: set(map(_numberless, own)) for component, own in self._places.items()}
        for component, flat in self._readings(name):
            if _numberless(flat) in self._numberless[component]:
                return component
        return None

    def _readings(self, name):
        """(component, module) for each prefix that the name may have."""
        flat = name.replace(".processor.", ".").replace(".", "_")
        for component in self._places:
            for prefix in PREFIXES.get(component, (component + "_",)):
                if flat.startswith(prefix):
                    yield component, flat[len(prefix) :]


def _places(component: str, names: Iterable[str]) -> dict[str, list[Place]]:
    """Module in any dialect, with underscores for dots -> its places."""
    places: dict[str, list[Place]] = {}
    if component == "transformer":
        weights = [name + ".weight" for name in names]
        for original, recipe in to_original(weights, original_table("transformer"), "the transformer").items():
            shares = places[_flat(original)] = _shares(recipe.pieces)
            if len(shares) == 3:  # OneTrainer numbers Q, K and V of the original's joint layer
                places.update({f"{_flat(original)}_{number}": [Place(p.module)] for number, p in enumerate(shares)})
    for name in names:
        places[_flat(name + ".weight")] = [Place(name)]
        if name.endswith(".to_out.0"):
            places[_flat(name[:-2] + ".weight")] = [Place(name)]
    for old, new in _OLD_NAMES.items():
        places.update({flat.replace(new, old): place for flat, place in list(places.items()) if flat.endswith(new)})
    return places


def _numberless(flat):
    return re.sub(r"\d+", "#", flat)


def _flat(weight):
    return weight[: -len(".weight")].replace(".", "_")


def _shares(pieces):
    """Places of the layers whose rows, piece after piece, make up the original's."""
    by_layer = {}
    for position, piece in enumerate(pieces):
        by_layer.setdefault(piece.name[: -len(".weight")], []).append((piece.index, (position, len(pieces))))
    return [
        Place(module, ((0, 1),) if len(by_layer) == len(pieces) == 1 else tuple(share for _, share in sorted(shares)))
        for module, shares in by_layer.items()
    ]
