"""Reads an adapter's file into adapter layers, and writes them back."""

from __future__ import annotations

import collections
import json
import operator
import os
from collections.abc import Mapping
from functools import reduce
from typing import Any

import paddle

from ..serialization.layout import declared_layout
from ..serialization.readers import SafetensorsFile
from ..serialization.source import TensorSource
from ..serialization.tensors import cast
from ..serialization.weight_files import to_paddle
from ..serialization.writers import byte_size, write_tensors
from ..utils.errors import CheckpointFormatError, InputError
from ..utils.files import atomic_write
from ..utils.json_files import parse_json_object
from ..utils.types import PathLike, Tensors
from .causes import naming_the_model, not_for_these
from .keys import ModuleNames, Place, split_key
from .layers import Dense, Kronecker, LowRank, Orthogonal, Sum, WeightChange
from .parts import LayerParts, Scalings

LORA_WEIGHT_NAME = "pytorch_lora_weights.safetensors"
PADDLE_LORA_WEIGHT_NAME = "paddle_lora_weights.safetensors"
LORA_WEIGHT_NAMES = (LORA_WEIGHT_NAME, PADDLE_LORA_WEIGHT_NAME)  # of a directory, the first that is there
LORA_ADAPTER_METADATA_KEY = "lora_adapter_metadata"


def read_lora_file(path: PathLike) -> tuple[Tensors, dict[str, Any] | None]:
    """``(tensors, PEFT's configuration or None)`` of a safetensors file, under the names in the file.

    The tensors are as they are, but where only the file's format or name tells their layout: if all matrices are
    square, as where the rank equals the width, :func:`read_adapters` cannot see that they are transposed.
    """
    file = SafetensorsFile(path)
    text = file.metadata.get(LORA_ADAPTER_METADATA_KEY)
    source = f"{file.path}: its metadata {LORA_ADAPTER_METADATA_KEY!r}"
    metadata = None if text is None else parse_json_object(text, source, CheckpointFormatError)
    tensors = {name: file.read(name) for name in file.keys()}
    matrices = {key: tensor for key, tensor in tensors.items() if split_key(key)[1] in ("down", "up")}
    if declared_layout(file) == "paddle" and not any(len(set(tensor.shape)) > 1 for tensor in matrices.values()):
        tensors.update({key: tensor.t() for key, tensor in matrices.items()})
    return tensors, metadata


def save_lora_file(
    save_directory: PathLike,
    weight_name: str | None,
    tensors: Tensors,
    config: Mapping[str, Any],
    layout: str = "diffusers",
) -> None:
    """Writes an adapter's ``tensors`` into ``save_directory``, with PEFT's configuration as metadata.

    Args:
        layout: "diffusers", or "ppdiffusers", see :func:`for_ppdiffusers`.

    Raises:
        InputError: ``save_directory`` is a file, another layout, or tensors that it does not have.
    """
    if layout not in ("diffusers", "ppdiffusers"):
        raise InputError(f"layout is {layout!r}; an adapter can be saved as 'diffusers' or 'ppdiffusers'.")
    metadata, name = {"format": "pt"}, weight_name or LORA_WEIGHT_NAME
    if layout == "ppdiffusers":
        tensors, config = for_ppdiffusers(tensors, config), {}
        metadata, name = {"format": "pd"}, weight_name or PADDLE_LORA_WEIGHT_NAME
    if config:
        config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        metadata[LORA_ADAPTER_METADATA_KEY] = json.dumps(config, indent=2, sort_keys=True)
    if os.path.isfile(save_directory):
        raise InputError(f"{save_directory} is a file; an adapter is saved into a directory. Choose another name.")
    os.makedirs(save_directory, exist_ok=True)
    needed = sum(byte_size(tensor) for tensor in tensors.values())
    with atomic_write(os.path.join(save_directory, name), needed) as file:
        write_tensors(file, tensors, metadata)


def read_adapters(
    tensors: Mapping[str, paddle.Tensor],
    layers: Mapping[str, Mapping[str, Any]],
    path: str,
    metadata: Mapping[str, Any] | None = None,
    alphas: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> tuple[dict[str, dict[str, WeightChange]], list[str]]:
    """Makes the adapter layers of a file. Each tensor is used, or named in an error.

    Args:
        tensors: by key, in any dialect of :mod:`ppsd3.adapters.keys`.
        layers: component -> name -> layer, see :func:`ppsd3.adapters.network.adaptable_layers`.
        path: what messages call the file.
        metadata: PEFT's configuration of each component, names prefixed by it, e.g.
            ``"transformer.lora_alpha"``, as diffusers saves it.
        alphas: module or key -> alpha, beside those among the tensors.
        strict: whether a key that matches no layer is an error; else it is left out.

    Returns:
        (component -> module -> adapter, keys left out).

    Raises:
        WeightMismatchError: keys that match no layer, or tensors of another shape than the layer's.
        CheckpointFormatError: no key matches a layer, tensors of a module are missing, superfluous or no finite
            numbers, or the configuration cannot be read.
        InputError: ``alphas`` are no numbers.
    """
    names = ModuleNames({component: list(some) for component, some in layers.items()})
    found: dict[tuple[str, tuple[Place, ...]], LayerParts] = {}
    lost: list[str] = []
    given = {_alpha_key(name): to_paddle(f"network_alphas[{name!r}]", value) for name, value in (alphas or {}).items()}
    for key, tensor in {**tensors, **given}.items():
        module, part = split_key(key)
        place = None if part is None else names.find(module)
        if part is None or place is None:
            lost.append(key)
        else:
            where = place[0], tuple(place[1])
            found.setdefault(where, LayerParts(module, path)).add(part, key, tensor)
    for place in [place for place, parts in found.items() if set(parts.tensors) == {"alpha"}]:
        alpha = found.pop(place).keys["alpha"]
        lost += [] if alpha in given else [alpha]  # those that are given beside a file may be of all networks
    if not found or (lost and strict):
        raise not_for_these(path, lost, names, layers, tensors, any_fits=bool(found))
    if _is_paddle(found, layers):
        found = {place: parts.turned() for place, parts in found.items()}
    scalings = {component: Scalings(metadata, component, path) for component in layers}
    adapters: dict[str, dict[str, WeightChange]] = {component: {} for component in layers}
    names_of: dict[tuple[str, str], str] = {}
    for (component, places), parts in found.items():
        for place in places:
            other = names_of.setdefault((component, place.module), parts.name)
            if other != parts.name:
                raise CheckpointFormatError(
                    f"{path}: {other} and {parts.name} are both for {place.module} of the {component}. Remove one."
                )
            with naming_the_model(path, tensors):
                made = parts.make(place, layers[component][place.module], scalings[component])
            adapters[component][place.module] = made
    return {component: some for component, some in adapters.items() if some}, lost


# --------------------------------------------------------------------------------------------------------------- layout


def _is_paddle(found, layers):
    """Whether A is [in, r] and B [r, out], as ppdiffusers writes them under whatever name and format, by the layers."""
    votes = set()
    for (component, places), parts in found.items():
        layer, some = layers[component][places[0].module], parts.tensors
        if {"down", "up"} <= set(some) and hasattr(layer, "in_features") and len(places) == 1:
            down, up = some["down"].shape, some["up"].shape
            if len(down) == len(up) == 2 and places[0].rows == ((0, 1),):
                is_torch = down[1] == layer.in_features and up[0] == layer.out_features
                is_paddle = down[0] == layer.in_features and up[1] == layer.out_features
                votes |= {is_paddle} if is_torch != is_paddle else set()
    return votes == {True}


def layout_of_file(file: TensorSource) -> str:
    """``"torch"`` or ``"paddle"``, without the network that a LoRA is for: a rank is smaller than a layer's width, and
    where both are the same, the file's format or name decides."""
    shapes = [(part, file.info(key).shape) for key in file.keys() for _, part in (split_key(key),)]
    matrices = [shape if part == "down" else shape[::-1] for part, shape in shapes if part in ("down", "up")]
    votes = {shape[0] > shape[1] for shape in matrices if len(shape) == 2 and shape[0] != shape[1]}
    return ("paddle" if votes.pop() else "torch") if len(votes) == 1 else declared_layout(file)


def for_ppdiffusers(tensors: Mapping[str, paddle.Tensor], config: Mapping[str, Any]) -> Tensors:
    """A LoRA as ppdiffusers' SD3 pipeline reads it: A [in, r] and B [r, out], which contains alpha / r.

    Args:
        tensors: by diffusers' key, the component's name included.
        config: PEFT's configuration of each component, as in :func:`read_adapters`.

    Raises:
        InputError: tensors of text encoders, of a convolution, or of another kind than A and B.
    """
    ranks = {split_key(key)[0]: tensor.shape[0] for key, tensor in tensors.items() if split_key(key)[1] == "down"}
    scalings = Scalings(config, "transformer", "The adapter")
    made: Tensors = {}
    for key, tensor in tensors.items():
        module, part = split_key(key)
        is_matrix = part in ("down", "up") and module in ranks and tensor.ndim == 2
        if not is_matrix or not key.startswith("transformer."):
            raise InputError(
                f"ppdiffusers' pipeline for Stable Diffusion 3 takes LoRA of the transformer only, which {key} is not. "
                "Save without layout='ppdiffusers', or fuse_lora() and save the pipeline in that layout."
            )
        scaling = scalings.of(module[len("transformer.") :], ranks[module])
        made[key] = (tensor if part == "down" or scaling == 1.0 else tensor * scaling).t().contiguous()
    return made


def _alpha_key(name):
    return name if name.endswith("alpha") else name + ".alpha"


# -------------------------------------------------------------------------------------------------------------- writing


def write_adapters(adapters: Mapping[str, WeightChange]) -> tuple[Tensors, dict[str, Any]]:
    """``(tensors, metadata)`` of one component's adapters, as diffusers saves them, without the component's prefix.

    ``adapters`` are by module. LoKr and full matrices, for which PEFT has no names, get LyCORIS', scaling included.
    """
    tensors: Tensors = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for module, adapter in adapters.items():
        for change in _apart(adapter):
            if isinstance(change, LowRank):
                tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = change.lora_A, change.lora_B
                ranks[module], alphas[module] = change.rank, change.scaling * change.rank
                if change.lora_bias is not None:
                    tensors[f"{module}.lora_B.bias"] = change.lora_bias
            elif isinstance(change, Kronecker):
                factors = change.factors
                tensors.update({f"{module}.{name}": factor for name, factor in factors.items()})
                tensors[f"{module}.lokr_w1"] = change.lokr_w1
                if len(factors) == 1:  # alpha has no effect then
                    tensors[f"{module}.lokr_w1"] = change.lokr_w1 * change.scaling
                else:
                    rank = factors["lokr_w2_b"].shape[0]
                    tensors[f"{module}.alpha"] = paddle.to_tensor(change.scaling * rank, dtype="float32")
            elif isinstance(change, Orthogonal):
                tensors[f"{module}.oft_blocks"] = change.oft_blocks
                if change.rescale is not None:
                    tensors[f"{module}.rescale"] = change.rescale
            elif isinstance(change, Dense):
                tensors[f"{module}.diff"] = change.diff * change.scaling
            if change.lora_bias is not None and not isinstance(change, LowRank):
                tensors[f"{module}.diff_b"] = change.lora_bias * change.scaling
            if change.lora_magnitude_vector is not None:
                magnitude = change.lora_magnitude_vector
                if isinstance(change, LowRank):  # as PEFT has it: [out], of a convolution [1, out, 1, 1]
                    magnitude = magnitude if change.lora_A.ndim == 2 else magnitude.reshape([1, -1, 1, 1])
                    tensors[f"{module}.lora_magnitude_vector"] = magnitude
                else:
                    tensors[f"{module}.dora_scale"] = magnitude.unsqueeze(1)
    return tensors, _peft_config(tensors, ranks, alphas)


def _apart(adapter: WeightChange) -> list[WeightChange]:
    """The changes that are written one by one, at most one of a kind: full and further matrices become one."""
    if not isinstance(adapter, Sum):
        return [adapter]
    written: list[WeightChange] = []
    matrices: list[WeightChange] = []
    for part in adapter.parts:
        is_first = not isinstance(part, Dense) and all(type(other) is not type(part) for other in written)
        (written if is_first else matrices).append(part)
    if matrices:
        products = [part.matrix() * part.scaling for part in matrices]
        whole = reduce(operator.add, products)
        shape = next((part.diff.shape for part in matrices if isinstance(part, Dense)), whole.shape)
        written.append(Dense(cast(whole.reshape(shape), next(iter(adapter.parameters())).dtype)))
    return [*written, adapter]


def _peft_config(tensors: Tensors, ranks: dict[str, int], alphas: dict[str, float]) -> dict[str, Any]:
    """PEFT's LoraConfig; empty without LoRA layers."""
    if not ranks:
        return {}
    alphas = {module: int(alpha) if alpha == int(alpha) else alpha for module, alpha in alphas.items()}
    rank, alpha = (collections.Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "target_modules": sorted(ranks),
        "use_dora": any(name.endswith(".lora_magnitude_vector") for name in tensors),
        "lora_bias": any(name.endswith(".lora_B.bias") for name in tensors),
        "use_rslora": False,
        "bias": "none",
        "lora_dropout": 0.0,
    }
