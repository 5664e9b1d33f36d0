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

from ..serialization.readers import SafetensorsFile
from ..serialization.tensors import cast
from ..serialization.writers import write_tensors
from ..utils.errors import CheckpointFormatError, InputError, WeightMismatchError
from ..utils.files import atomic_write
from ..utils.types import PathLike, Tensors
from .keys import ModuleNames, Place, split_key
from .layers import Dense, Kronecker, LowRank, WeightChange, hadamard

LORA_WEIGHT_NAME = "pytorch_lora_weights.safetensors"
LORA_ADAPTER_METADATA_KEY = "lora_adapter_metadata"

_SHOWN = 5  # keys that a message names


def read_lora_file(path: PathLike) -> tuple[Tensors, dict[str, Any] | None]:
    """``(tensors, PEFT's configuration or None)`` of a safetensors file, under the names in the file."""
    file = SafetensorsFile(path)
    text = file.metadata.get(LORA_ADAPTER_METADATA_KEY)
    try:
        metadata = None if text is None else json.loads(text)
    except ValueError as error:
        raise CheckpointFormatError(f"{file.path}: its {LORA_ADAPTER_METADATA_KEY} is not JSON ({error}).") from error
    return {name: file.read(name) for name in file.keys()}, metadata


def save_lora_file(
    save_directory: PathLike, weight_name: str | None, tensors: Tensors, config: Mapping[str, Any]
) -> None:
    """Writes an adapter's ``tensors`` into ``save_directory``, with PEFT's configuration as metadata.

    Raises:
        InputError: ``save_directory`` is a file.
    """
    metadata = {"format": "pt"}
    if config:
        config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        metadata[LORA_ADAPTER_METADATA_KEY] = json.dumps(config, indent=2, sort_keys=True)
    if os.path.isfile(save_directory):
        raise InputError(f"{save_directory} is a file; an adapter is saved into a directory. Choose another name.")
    os.makedirs(save_directory, exist_ok=True)
    with atomic_write(os.path.join(save_directory, weight_name or LORA_WEIGHT_NAME)) as file:
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
        value, stabilised = alpha
        return 1.0 if value is None else value / (math.sqrt(rank) if stabilised else rank)

    options = {"bias": get("bias", rows)} if "bias" in parts else {}
    if "magnitude" in parts:
        options["magnitude"] = _magnitude(get("magnitude"), rows, key, path)
    if "down" in parts or "up" in parts:
        down, up = get("down"), get("up", rows)
        adapter = LowRank(down, up, scaling=scaling(down.shape[0]), **options)
        shape = [up.shape[0], down.shape[1]] if up.shape[1] == down.shape[0] else None
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
