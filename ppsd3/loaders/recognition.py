"""Recognizes safetensors files by their headers: networks, adapters, textual inversions, other models' files.

Used by ``ppsd3 info``; the loaders do not need it. What a file is that cannot be used,
:func:`ppsd3.utils.recognition.explain` says.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import os
import re
from typing import Any

from ..adapters.files import layout_of_file
from ..adapters.keys import ModuleNames, adapter_kind, bundled_word, dialect, split_key
from ..adapters.network import adaptable_layers
from ..modeling_utils import ModelMixin, to_be_filled
from ..models import SD3Transformer2DModel
from ..quantization import takes_int8
from ..serialization import SafetensorsFile, SingleFile
from ..serialization.sd3_configs import infer_config, published_name
from ..serialization.source import TensorSource, explain_source
from ..transformers import CLIPTextModelWithProjection, T5EncoderModel
from ..utils.errors import CheckpointFormatError
from ..utils.types import PathLike
from .single_file import NETWORKS
from .textual_inversion import KEYS

_SHOWN = 3
_BLOCK = re.compile(r".*?\.\d+\.")  # of a name: the entry of a list that holds it


@dataclasses.dataclass
class Component:
    """A network or adapter in a file.

    Attributes:
        values: number of scalars in the weights, ``int8_values`` of them in int8.
        dtypes: name of a dtype -> number of tensors.
        quantizable: how many of the scalars int8 would take, with T5's table of positions, which it leaves.
        largest_block: most scalars of a block, or of what is in none.
    """

    name: str
    class_name: str
    values: int
    dtypes: collections.Counter[str]
    bytes_on_disk: int
    int8_values: int = 0
    quantizable: int = 0
    largest_block: int = 0

    @classmethod
    def of(
        cls, name: str, kind: type[ModelMixin] | str, source: TensorSource, bytes_on_disk: int | None = None
    ) -> Component:
        """Counted from the headers of ``source``; ``kind`` is a network's class, or "" for an adapter."""
        infos = {key: source.info(key) for key in source.keys()}
        sizes = {key: math.prod(info.shape) for key, info in infos.items()}
        blocks: collections.Counter[str] = collections.Counter()
        for key, count in sizes.items():
            block = _BLOCK.match(key)
            blocks[block[0] if block else key.rpartition(".")[0]] += count
        quantized = () if isinstance(kind, str) else [key for key, i in infos.items() if takes_int8(kind, key, i.shape)]
        return cls(
            name,
            kind if isinstance(kind, str) else kind.__name__,
            sum(sizes.values()),
            collections.Counter(info.dtype for info in infos.values()),
            sum(info.nbytes for info in infos.values()) if bytes_on_disk is None else bytes_on_disk,
            sum(size for key, size in sizes.items() if infos[key].dtype == "int8"),
            sum(sizes[key] for key in quantized),
            max(blocks.values(), default=0),
        )


@dataclasses.dataclass
class Recognized:
    """What a file is.

    Attributes:
        what: in one phrase.
        facts: details, a line each.
        components: the networks in it, or the adapter.
        load: lines of Python that load it.
    """

    path: str
    what: str
    facts: list[str]
    components: list[Component]
    load: list[str]

    @property
    def is_network(self) -> bool:
        """Whether it holds networks, not only an adapter or a textual inversion."""
        return any(component.class_name for component in self.components)


def recognize(path: PathLike) -> Recognized:
    """Recognizes the safetensors file at ``path``.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointFormatError: a pickle, GGUF or damaged file, or one for another model than Stable Diffusion 3.
    """
    file = SafetensorsFile(path)
    keys = file.keys()
    if any(split_key(key)[1] for key in keys):
        return _adapter(file, keys)
    if _is_embedding(file, keys):
        return _embedding(file, keys)
    return _networks(SingleFile(path), file)


# ------------------------------------------------------------------------------------------------------------ networks


def _networks(file: SingleFile, tensors: SafetensorsFile) -> Recognized:
    facts, components = [], []
    for name, source in file.sources.items():
        components.append(Component.of(name, NETWORKS[name], source))
        try:
            config = file.configs.get(name) or infer_config(name, source)
        except CheckpointFormatError as error:  # of no published size: a directory with its configuration is needed
            foreign = explain_source(tensors, wanted="network")
            if foreign is not None:
                raise CheckpointFormatError(foreign) from error
            facts.append(f"{name}: of a size that needs config=, a directory with its configuration")
            continue
        facts.append(f"{name}: {published_name(name, config) or 'of no published size'}{_speciality(name, config)}")
    # Text towers have transformers' names in either.
    layout = next((file.layouts[name] for name in ("transformer", "vae") if name in file.layouts), None)
    names = {"original": ", under the names of Stability AI", "diffusers": ", under the names of diffusers"}.get(
        layout or "", ""
    )
    by_us = ", written by ppsd3 with its configurations" if file.configs else ""
    what = f"{len(components)} network{'s' if len(components) > 1 else ''} in one file{names}{by_us}"
    return Recognized(file.path, what, facts, components, _call(file))


def _speciality(name, config):
    channels = config.get("in_channels", 0)
    is_for_inpainting = name == "transformer" and isinstance(channels, int) and channels > 32
    return f", for inpainting ({channels} channels)" if is_for_inpainting else ""


def _call(file):
    """Lines that load what the file has."""
    path = repr(file.path)
    if "transformer" not in file.sources:
        lines = []
        for name in file.sources:
            subfolder = f", subfolder={name!r}" if name in ("text_encoder", "text_encoder_2") else ""
            lines.append(f"ppsd3.{NETWORKS[name].__name__}.from_single_file({path}{subfolder})")
        return lines
    files = {"vae": "vae", "text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
    more = [f"{name}='{stem}.safetensors'" for name, stem in files.items() if name not in file.sources]
    arguments = ", ".join([path, *more, "tokenizer_3='path/to/tokenizer_3'"])
    pipeline = "StableDiffusion3ControlNetPipeline" if "controlnet" in file.sources else "StableDiffusion3Pipeline"
    return [
        f"ppsd3.{pipeline}.from_single_file({arguments})",
        "# without T5: text_encoder_3=None, tokenizer_3=None",
    ]


# ------------------------------------------------------------------------------------------------------------ adapters


def _adapter(file: SafetensorsFile, keys: list[str]) -> Recognized:
    names = ModuleNames(_modules())
    parts, modules, ranks = collections.Counter(), collections.defaultdict(set), collections.Counter()
    width, lost, blocks, dual, words = None, [], set(), False, set()
    is_paddle = layout_of_file(file) == "paddle"
    for key in keys:
        module, part = split_key(key)
        place = None if part is None else names.find(module)
        if place is None:
            word, tower = bundled_word(key) or (None, None)
            is_word = tower in KEYS.values()
            words |= {word} if is_word else set()
            lost += [] if is_word else [key]
            continue
        component, places = place
        parts[part] += 1
        modules[component].add(module)
        shape = file.info(key).shape
        shape = shape[::-1] if is_paddle and part in ("down", "up") else shape
        if part in ("down", "hada_w1_b", "lokr_w2_b"):
            ranks[shape[0]] += 1
        if component == "transformer":
            blocks |= {int(number) for p in places for number in re.findall(r"transformer_blocks\.(\d+)\.", p.module)}
            dual = dual or any(".attn2." in p.module for p in places)
            if part == "down" and re.search(r"\.attn2?\.(to|add)_[qkv]", places[0].module):
                width = shape[1]
    foreign = explain_source(file, wanted="adapter")
    if foreign or not modules:
        shown = ", ".join(lost[:_SHOWN])
        raise CheckpointFormatError(
            foreign
            or f"{file.path} is an adapter for something else, judged by its keys ({shown}); ppsd3 takes those for "
            "Stable Diffusion 3 and 3.5. Load it with the model that it was made for."
        )
    facts = [f"{component}: {len(some)} layers" for component, some in modules.items()]
    if words:
        facts.append(f"learnt words beside it, which are loaded too: {', '.join(sorted(words))}")
    if ranks:
        facts.append("ranks: " + ", ".join(f"{rank} ({count} layers)" for rank, count in ranks.most_common(_SHOWN)))
    base = _base(width, max(blocks, default=0) + 1, dual)
    if base:
        facts.append(f"made for: {base}")
    if lost:
        facts.append(f"{len(lost)} keys of no layer here, e.g. {lost[0]}: load with strict=False to leave them out")
    what = f"an adapter ({adapter_kind(parts)}), under the names of {dialect(keys[0])}"
    what += ", in ppdiffusers' layout" if is_paddle else ""
    component = Component.of(adapter_kind(parts), "", file, os.path.getsize(file.path))
    return Recognized(file.path, what, facts, [component], [f"pipe.load_lora_weights({file.path!r})"])


def _base(width, blocks, dual):
    """The published transformers with layers of this width."""
    if width is None:
        return None
    if width == 1536:
        return "SD3.5-medium" if dual else "SD3-medium or SD3.5-medium"
    return "SD3.5-large" if width == 2432 else f"a transformer of width {width} with {blocks} blocks or more"


@functools.lru_cache(maxsize=1)
def _modules():
    """Component -> names of the layers in published networks, of all sizes together."""
    with to_be_filled():
        networks = {
            "transformer": SD3Transformer2DModel(
                num_layers=38, qk_norm="rms_norm", dual_attention_layers=tuple(range(38)), **_TINY_TRANSFORMER
            ),
            "text_encoder": CLIPTextModelWithProjection(num_hidden_layers=12, **_TINY_CLIP),
            "text_encoder_2": CLIPTextModelWithProjection(num_hidden_layers=32, **_TINY_CLIP),
            "text_encoder_3": T5EncoderModel(num_layers=24, d_model=8, d_kv=8, d_ff=8, num_heads=1, vocab_size=8),
        }
        return {name: list(adaptable_layers(network)) for name, network in networks.items()}


# Only the names of their layers matter.
_TINY_TRANSFORMER: dict[str, Any] = {"attention_head_dim": 8, "num_attention_heads": 1, "caption_projection_dim": 8}
_TINY_TRANSFORMER.update(joint_attention_dim=8, pooled_projection_dim=8, pos_embed_max_size=8, sample_size=8)
_TINY_CLIP: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 1,
    "projection_dim": 8,
    "vocab_size": 8,
}


# --------------------------------------------------------------------------------------------------------------- words


def _is_embedding(file, keys):
    if keys and set(keys) <= set(KEYS.values()):
        return True
    return len(keys) == 1 and len(file.info(keys[0]).shape) in (1, 2) and "." not in keys[0]


def _embedding(file: SafetensorsFile, keys: list[str]) -> Recognized:
    facts = []
    for key in keys:
        shape = file.info(key).shape
        count, width = (1, *shape) if len(shape) == 1 else shape
        tower = {768: "CLIP-L", 1280: "OpenCLIP bigG"}.get(width, "neither published CLIP tower")
        facts.append(f"{key}: {count} vector{'s' if count > 1 else ''} of width {width}, for {tower}")
    component = Component.of("textual inversion", "", file, os.path.getsize(file.path))
    says = file.metadata.get("token") or (keys[0] if len(keys) == 1 and keys[0] != "emb_params" else None)
    token = "" if says else ", token='<word>'"
    if says:
        facts.append(f"the word: {says}")
    load = [f"pipe.load_textual_inversion({file.path!r}{token})"]
    return Recognized(file.path, "a learnt word (textual inversion)", facts, [component], load)
