"""Reads an adapter's file into adapter layers, and writes them back."""

from __future__ import annotations

import collections
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import paddle

from ..serialization.layout import declared_layout
from ..serialization.readers import SafetensorsFile
from ..serialization.source import TensorSource
from ..serialization.tensors import cast
from ..serialization.writers import byte_size, write_tensors
from ..utils.errors import CheckpointFormatError, InputError, WeightMismatchError
from ..utils.files import atomic_write
from ..utils.json_files import parse_json_object
from ..utils.types import PathLike, Tensors
from .keys import ModuleNames, Place, split_key
from .layers import Dense, Kronecker, LowRank, WeightChange, hadamard

LORA_WEIGHT_NAME = "pytorch_lora_weights.safetensors"
PADDLE_LORA_WEIGHT_NAME = "paddle_lora_weights.safetensors"
LORA_WEIGHT_NAMES = (LORA_WEIGHT_NAME, PADDLE_LORA_WEIGHT_NAME)  # of a directory, the first that is there
LORA_ADAPTER_METADATA_KEY = "lora_adapter_metadata"

_SHOWN = 5  # keys that a message names


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
    linears: Mapping[str, Mapping[str, Any]],
    path: str,
    metadata: Mapping[str, Any] | None = None,
    alphas: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> tuple[dict[str, dict[str, WeightChange]], list[str]]:
    """Makes the adapter layers of a file.

    Args:
        tensors: by key, in any dialect of :mod:`ppsd3.adapters.keys`.
        linears: component -> name -> linear layer.
        path: what messages call the file.
        metadata: PEFT's configuration of each component, names prefixed by it, e.g.
            ``"transformer.lora_alpha"``, as diffusers saves it.
        alphas: module or key -> alpha, beside those among the tensors.
        strict: whether a key that matches no layer is an error; else it is left out.

    Returns:
        (component -> module -> adapter, keys left out).

    Raises:
        WeightMismatchError: keys that match no layer, or tensors of another shape than the layer's.
        CheckpointFormatError: no key matches a layer, or tensors of a module are missing.
    """
    names = ModuleNames({component: list(layers) for component, layers in linears.items()})
    found: dict[tuple[str, tuple[Place, ...]], dict[str, Any]] = collections.defaultdict(dict)
    lost: list[str] = []
    for key, tensor in {**tensors, **{_alpha_key(name): value for name, value in (alphas or {}).items()}}.items():
        module, part = split_key(key)
        place = None if part is None else names.find(module)
        if part is None or place is None:
            lost.append(key)
        else:
            found[(place[0], tuple(place[1]))].update({part: tensor, "key": module})
    # An alpha without tensors is of a module that this file does not change.
    found = {place: parts for place, parts in found.items() if set(parts) - {"alpha", "key"}}
    _check_found(found, lost, path, list(linears), strict)
    if _is_paddle(found, linears):
        found = {place: _turned(parts) for place, parts in found.items()}
    adapters: dict[str, dict[str, WeightChange]] = {}
    for (component, places), parts in found.items():
        for place in places:
            layer = linears[component][place.module]
            alpha = _alpha_of(parts, component, place.module, metadata)
            adapters.setdefault(component, {})[place.module] = _make(parts, place, layer, alpha, path)
    return adapters, lost


def _check_found(found, lost, path, components, strict):
    shown = ", ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
    if not found:
        what = (
            f"none of its {len(lost)} keys is one of an adapter of these networks, e.g. {shown}"
            if lost
            else "it is empty"
        )
        raise CheckpointFormatError(
            f"{path} changes nothing in {', '.join(components)}: {what}. Check that it is a LoRA, LoHa or LoKr for "
            "Stable Diffusion 3 or 3.5, and for the size of this one."
        )
    if lost and strict:
        raise WeightMismatchError(
            f"{path} has {len(lost)} keys for which {', '.join(components)} have no linear layer: {shown}. It may be "
            "made for another size of Stable Diffusion 3, or for a text encoder that is not loaded. Pass strict=False "
            "to leave them out."
        )


# --------------------------------------------------------------------------------------------------------------- layout


def _is_paddle(found, linears):
    """Whether A is [in, r] and B [r, out], as ppdiffusers writes them under whatever name and format, by the layers."""
    votes = set()
    for (component, places), parts in found.items():
        if {"down", "up"} <= set(parts) and len(places) == 1 and places[0].rows == ((0, 1),):
            layer, down, up = linears[component][places[0].module], parts["down"].shape, parts["up"].shape
            if len(down) == len(up) == 2:
                is_torch = down[1] == layer.in_features and up[0] == layer.out_features
                is_paddle = down[0] == layer.in_features and up[1] == layer.out_features
                votes |= {is_paddle} if is_torch != is_paddle else set()
    return votes == {True}


def _turned(parts):
    """``parts`` of a module with A and B transposed."""
    return {
        part: tensor.t() if part in ("down", "up") and tensor.ndim == 2 else tensor for part, tensor in parts.items()
    }


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
        InputError: tensors of text encoders, or of another kind than A and B.
    """
    ranks = {split_key(key)[0]: tensor.shape[0] for key, tensor in tensors.items() if split_key(key)[1] == "down"}
    made: Tensors = {}
    for key, tensor in tensors.items():
        module, part = split_key(key)
        if part not in ("down", "up") or module not in ranks or not key.startswith("transformer."):
            raise InputError(
                f"ppdiffusers' pipeline for Stable Diffusion 3 takes LoRA of the transformer only, which {key} is not. "
                "Save without layout='ppdiffusers', or fuse_lora() and save the pipeline in that layout."
            )
        scaling = _scaling(ranks[module], _alpha_of({}, "transformer", module[len("transformer.") :], config))
        made[key] = (tensor if part == "down" or scaling == 1.0 else tensor * scaling).t().contiguous()
    return made


# -------------------------------------------------------------------------------------------------------------- reading


def _alpha_key(name):
    return name if name.endswith("alpha") else name + ".alpha"


def _alpha_of(parts, component, module, metadata):
    """``(alpha, rank_stabilised)`` of a module: its own, else from the file's configuration, else None."""
    settings = {
        key[len(component) + 1 :]: value for key, value in (metadata or {}).items() if key.startswith(component + ".")
    }
    stabilised = bool(settings.get("use_rslora"))
    if "alpha" in parts:
        alpha = parts["alpha"]
        return float(alpha.astype("float32")) if isinstance(alpha, paddle.Tensor) else float(alpha), stabilised
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(alpha), stabilised
    alpha = settings.get("lora_alpha")
    return None if alpha is None else float(alpha), stabilised


def _scaling(rank: int, alpha: tuple[float | None, bool]) -> float:
    """What B A is multiplied by, for ``alpha`` as :func:`_alpha_of` gives it."""
    value, stabilised = alpha
    return 1.0 if value is None else value / (math.sqrt(rank) if stabilised else rank)


def _make(parts: dict[str, Any], place: Place, layer: Any, alpha: tuple[float | None, bool], path: str) -> WeightChange:
    """The adapter of one layer, in the dtype that the layer computes in."""
    key, rows = parts["key"], place.rows

    def get(name, share=None):
        if name not in parts:
            raise CheckpointFormatError(f"{path}: {key} has no {name} beside its other tensors. Download it again.")
        tensor = parts[name]
        if tensor.ndim == 4 and tensor.shape[2:] == [1, 1]:
            tensor = tensor.reshape(tensor.shape[:2])
        return cast(_rows(tensor, share or ((0, 1),), key, path), layer.compute_dtype)

    def scaling(rank):
        return _scaling(rank, alpha)

    options = {"bias": get("bias", rows)} if "bias" in parts else {}
    if "magnitude" in parts:
        options["magnitude"] = _magnitude(get("magnitude"), rows, key, path)
    if "down" in parts or "up" in parts:
        down, up = get("down"), get("up", rows)
        adapter = LowRank(down, up, scaling=scaling(down.shape[0]), **options)
        shape = [up.shape[0], down.shape[1]]
        if up.shape[1] != down.shape[0]:
            raise WeightMismatchError(
                f"{path}: {key} has lora_A {list(down.shape)} and lora_B {list(up.shape)}, which are not [r, in] and "
                "[out, r]. Download the file again, or ask who made it."
            )
    elif any(name.startswith("hada") for name in parts):
        up1, down1, up2, down2 = get("hada_w1_a", rows), get("hada_w1_b"), get("hada_w2_a", rows), get("hada_w2_b")
        adapter = hadamard(up1, down1, up2, down2, scaling=scaling(down1.shape[0]), **options)
        shape = [up1.shape[0], down1.shape[1]]
    elif any(name.startswith("lokr") for name in parts):
        adapter, shape = _kronecker(parts, get, rows, scaling, options, key, path)
    else:
        if "diff_b" in parts:
            options["bias"] = get("diff_b", rows)
        matrix = get("diff", rows) if "diff" in parts else paddle.zeros([layer.out_features, layer.in_features])
        adapter, shape = Dense(matrix, **options), list(matrix.shape)
    if shape != [layer.out_features, layer.in_features]:
        raise WeightMismatchError(
            f"{path}: {key} makes a change of shape {shape} for {place.module}, whose weight is "
            f"{[layer.out_features, layer.in_features]}. It is made for another size of Stable Diffusion 3."
        )
    return adapter


def _kronecker(parts, get, rows, scaling, options, key, path):
    ranks = [get(f"lokr_w{i}_b").shape[0] for i in (1, 2) if f"lokr_w{i}" not in parts]
    first, second = (
        get(f"lokr_w{i}") if f"lokr_w{i}" in parts else paddle.matmul(get(f"lokr_w{i}_a"), get(f"lokr_w{i}_b"))
        for i in (1, 2)
    )
    # As LyCORIS: alpha has no effect where neither factor is one of low rank.
    options = {"scaling": scaling(ranks[-1]) if ranks else 1.0, **options}
    if first.shape[0] % rows[0][1] == 0:
        first = _rows(first, rows, key, path)
        return Kronecker(first, second, **options), [a * c for a, c in zip(first.shape, second.shape)]
    matrix = _rows(paddle.kron(first, second), rows, key, path)  # rows that no factor has separately
    return Dense(matrix, **options), list(matrix.shape)


def _magnitude(tensor, rows, key, path):
    if tensor.ndim == 2 and tensor.shape[0] == 1 and tensor.shape[1] != 1:
        raise CheckpointFormatError(
            f"{path}: {key} has magnitudes of columns {tensor.shape}; ppsd3 reads those of rows, [out, 1]. Train or "
            "convert it with wd_on_out=True."
        )
    return _rows(tensor.reshape([-1]), rows, key, path)


def _rows(tensor, rows, key, path):
    """The parts of ``tensor`` along its first axis that ``rows``, pairs (index, count), choose, concatenated."""
    if rows == ((0, 1),):
        return tensor
    count = rows[0][1]
    if tensor.shape[0] % count:
        raise WeightMismatchError(f"{path}: {key} has {tensor.shape[0]} rows, which are not {count} equal parts.")
    parts = tensor.chunk(count)
    return paddle.concat([parts[index] for index, _ in rows]) if len(rows) > 1 else parts[rows[0][0]].clone()


def write_adapters(adapters: Mapping[str, WeightChange]) -> tuple[Tensors, dict[str, Any]]:
    """``(tensors, metadata)`` of one component's adapters, as diffusers saves them, without the component's prefix.

    ``adapters`` are by module. LoKr and full matrices, for which PEFT has no names, get LyCORIS', scaling included.
    """
    tensors: Tensors = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for module, adapter in adapters.items():
        if isinstance(adapter, LowRank):
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = adapter.lora_A, adapter.lora_B
            ranks[module], alphas[module] = adapter.rank, adapter.scaling * adapter.rank
            if adapter.lora_bias is not None:
                tensors[f"{module}.lora_B.bias"] = adapter.lora_bias
            if adapter.lora_magnitude_vector is not None:
                tensors[f"{module}.lora_magnitude_vector"] = adapter.lora_magnitude_vector
            continue
        if isinstance(adapter, Kronecker):
            tensors[f"{module}.lokr_w1"] = adapter.lokr_w1 * adapter.scaling
            tensors[f"{module}.lokr_w2"] = adapter.lokr_w2
        else:
            tensors[f"{module}.diff"] = adapter.diff * adapter.scaling
        if adapter.lora_bias is not None:
            tensors[f"{module}.diff_b"] = adapter.lora_bias * adapter.scaling
        if adapter.lora_magnitude_vector is not None:
            tensors[f"{module}.dora_scale"] = adapter.lora_magnitude_vector.unsqueeze(1)
    return tensors, _peft_config(adapters, ranks, alphas)


def _peft_config(
    adapters: Mapping[str, WeightChange], ranks: dict[str, int], alphas: dict[str, float]
) -> dict[str, Any]:
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
        "use_dora": any(adapters[module].lora_magnitude_vector is not None for module in ranks),
        "lora_bias": any(adapters[module].lora_bias is not None for module in ranks),
        "use_rslora": False,
        "bias": "none",
        "lora_dropout": 0.0,
    }
