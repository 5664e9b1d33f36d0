"""Single files with one or several networks, as Stability AI and ComfyUI publish Stable Diffusion 3.

``sd3_medium_incl_clips_t5xxlfp8.safetensors`` holds all five networks, the files of SD3.5 the transformer and the VAE;
ComfyUI has the text encoders in files of their own. Each network comes out as a source of tensors under diffusers'
names, read from the one mapped file when they are needed.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from ..utils.checking import fit
from ..utils.errors import CheckpointFormatError
from ..utils.json_files import parse_json_object, read_json
from ..utils.types import PathLike
from .checkpoint import Checkpoint
from .rearranged import Piece, RearrangedCheckpoint, Recipe
from .sd3_keys import find_layout, is_diffusers, to_diffusers
from .source import TensorSource

# Component -> (kind of network, prefixes of its names); the first prefix is the one that is written.
COMPONENTS = {
    "transformer": ("transformer", ("model.diffusion_model.",)),
    "vae": ("vae", ("first_stage_model.", "vae.")),
    "text_encoder": ("clip", ("text_encoders.clip_l.transformer.", "clip_l.transformer.")),
    "text_encoder_2": ("clip", ("text_encoders.clip_g.transformer.", "clip_g.transformer.")),
    "text_encoder_3": ("t5", ("text_encoders.t5xxl.transformer.", "t5xxl.transformer.")),
    "controlnet": ("controlnet", ("control_model.",)),
}

# Metadata key of a file that ppsd3 wrote: component -> configuration, since shapes do not tell all of it.
CONFIGS_KEY = "ppsd3_configs"

# What ComfyUI stores beside the weights: a temperature of CLIP's training that no text tower uses, marks of 8-bit
# formats, ranges of activations for 8-bit products, a tokenizer; and buffers 0, 1, 2, ... of old CLIP files.
_BESIDE = re.compile(
    r"(.*\.)?(logit_scale|logit_bias|scaled_fp8|comfy_quant|scale_input|input_scale|spiece_model|embeddings\.position_ids)"
)
# The other tower of a whole CLIP, which reads pictures.
_VISION = re.compile(r"(vision_model|visual_projection|visual)\..+")
_SCALES = re.compile(r"(.*\.)(?:scale_weight|weight_scale)")
_CLIP_L_LARGEST = 1024  # width: CLIP-L has 768, bigG 1280


class SingleFile:
    """The networks in one safetensors file; opening it reads the header only.

    Attributes:
        sources: component -> tensors under diffusers' names, e.g. ``sources["vae"]``.
        configs: component -> configuration, from a file that ppsd3 wrote, or of a ControlNet from the ``config.json``
            beside ``diffusion_pytorch_model.safetensors``; else empty.
        layouts: component -> "original" or "diffusers", the layout of its names.

    Raises:
        CheckpointNotFoundError, CheckpointFormatError: no such file, not a safetensors file, or tensors that belong
            to no part of Stable Diffusion 3.
    """

    path: str
    sources: dict[str, TensorSource]
    configs: dict[str, dict[str, Any]]
    layouts: dict[str, str]

    def __init__(self, path: PathLike) -> None:
        checkpoint = Checkpoint.open_file(path)
        self.path = checkpoint.path
        self.configs = self._read_configs(checkpoint.metadata)
        scales = _weight_scales(checkpoint)
        named = [name for name in checkpoint.keys() if name not in scales.values() and not _BESIDE.fullmatch(name)]
        factors = {weight: _scalar(checkpoint, scale) for weight, scale in scales.items()}
        self.sources, self.layouts = {}, {}
        for component, prefix, names in self._split(named, checkpoint):
            self.sources[component] = self._source(checkpoint, component, prefix, names, factors)
            self.layouts[component] = "diffusers" if is_diffusers(names) else "original"
        if list(self.sources) == ["controlnet"] and not self.configs:
            self.configs = self._config_beside()

    def source(self, component: str) -> TensorSource:
        """The tensors of ``component``. A lone CLIP tower is "text_encoder" or "text_encoder_2", as asked for.

        Raises:
            CheckpointFormatError: the file has none; the message says what it has.
        """
        found = self.sources.get(component)
        if found is None and len(self.sources) == 1:
            (only,) = self.sources
            if COMPONENTS[only][0] == COMPONENTS[component][0]:
                found = self.sources[only]
        if found is None:
            raise CheckpointFormatError(
                f"{self.path} has no {component}; it has {', '.join(self.sources)}. Pass the file that has it."
            )
        return found

    def _read_configs(self, metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
        source = f"{self.path}: its metadata {CONFIGS_KEY!r}"
        configs = parse_json_object(metadata.get(CONFIGS_KEY, "{}"), source, CheckpointFormatError)
        return fit(source, configs, dict[str, dict], CheckpointFormatError)

    def _config_beside(self):
        """A ControlNet's configuration, which shapes do not tell whole, where its file is in a diffusers directory."""
        directory, name = os.path.split(self.path)
        beside = os.path.join(directory, "config.json")
        if not name.startswith("diffusion_pytorch_model") or not os.path.isfile(beside):
            return {}
        config = read_json(beside, purpose="the ControlNet's configuration")
        return {"controlnet": config} if config.get("_class_name") == "SD3ControlNetModel" else {}

    def _split(self, names, checkpoint):
        """[(component, prefix, its names without it)]."""
        found, left = [], list(names)
        for component, (_, prefixes) in COMPONENTS.items():
            for prefix in prefixes:
                mine = [name[len(prefix) :] for name in left if name.startswith(prefix)]
                if mine:
                    found.append((component, prefix, mine))
                    left = [name for name in left if not name.startswith(prefix)]
        if found and left:
            raise CheckpointFormatError(
                f"{self.path} has {len(left)} tensors that belong to no part of Stable Diffusion 3: "
                f"{', '.join(left[:5])}. Check that it is one; remove them if they are something else's."
            )
        if found:
            return found
        kind, _ = find_layout(names)
        if kind is None:
            raise CheckpointFormatError(
                f"{self.path} is no part of Stable Diffusion 3: it begins with {', '.join(names[:3]) or 'nothing'}. "
                "Pass a file with its transformer (joint_blocks... or transformer_blocks...), VAE or text encoders."
            )
        component = next(name for name, (known, _) in COMPONENTS.items() if known == kind)
        if kind == "clip" and _clip_width(checkpoint) > _CLIP_L_LARGEST:
            component = "text_encoder_2"
        return [(component, "", names)]

    def _source(self, checkpoint, component, prefix, names, factors):
        kind, table = find_layout(names)
        texts = [name for name in names if kind != "clip" or not _VISION.fullmatch(name)]
        is_whole_clip_l = len(texts) < len(names) and component == "text_encoder"
        names = texts
        if table is None or kind != COMPONENTS[component][0]:
            raise CheckpointFormatError(
                f"{self.path} has tensors called {prefix}..., but they are not those of a "
                f"{component}: {', '.join(names[:3])}. Check that it is a Stable Diffusion 3."
            )
        recipes = {
            target: Recipe(tuple(Piece(prefix + name, *part) for name, *part in recipe.pieces), recipe.form)
            for target, recipe in to_diffusers(names, table, self.path).items()
        }
        if kind == "clip" and (is_whole_clip_l or "text_projection.weight" not in recipes):
            _add_projection(checkpoint, recipes)
        return RearrangedCheckpoint(checkpoint, recipes, factors, checkpoint.metadata)


def _add_projection(checkpoint, recipes):
    """Adds the identity as CLIP-L's projection, which its files lack because its pooled output is used directly.

    (A whole CLIP has one, to compare texts with pictures.)
    """
    table = recipes.get("text_model.embeddings.token_embedding.weight")
    width = checkpoint.info(table.pieces[0].name).shape[-1] if table else 0
    if 0 < width <= _CLIP_L_LARGEST:
        recipes["text_projection.weight"] = np.eye(width, dtype=np.float32)


def _clip_width(checkpoint):
    """Width of the text tower in a file that holds nothing else."""
    tables = [name for name in checkpoint.keys() if name.endswith("token_embedding.weight")]
    return checkpoint.info(tables[0]).shape[-1] if tables else 0


def _weight_scales(checkpoint):
    """Weight in 8-bit floats -> name of its scale, as ComfyUI writes it."""
    names, scales = set(checkpoint.keys()), {}
    for name in checkpoint.keys():
        match = _SCALES.fullmatch(name)
        weight = match and match.group(1) + "weight"
        if weight in names and checkpoint.info(weight).dtype.startswith("float8"):
            scales[weight] = name
    return scales


def _scalar(checkpoint, name):
    array = checkpoint.load(name, "float32")
    if array.size != 1:
        raise CheckpointFormatError(
            f"{checkpoint.path}: {name} has the shape {list(array.shape)}; ppsd3 reads 8-bit floats with one scale "
            "for a tensor. Use a file in fp16, or in that form."
        )
    return float(array.reshape(-1)[0])
