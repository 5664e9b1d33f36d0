"""Adapters: keys, shapes, dtypes, metadata. What is accepted changes the weights as an independent reader says."""

from __future__ import annotations

import json
import re

import numpy as np
from helpers import loras

from .. import corpus, mutation
from ..case import Case, Wrong

_ENDS = {
    "peft": {"down": ".lora_A.weight", "up": ".lora_B.weight"},
    "kohya": {"down": ".lora_down.weight", "up": ".lora_up.weight"},
}
_PART = re.compile(
    r"(.*?)\.(lora_A\.weight|lora_B\.weight|lora_down\.weight|lora_up\.weight|alpha|hada_w[12]_[ab]|lokr_w[12]|diff|diff_b)"
)
_PREFIXES = {
    "transformer": ("transformer", "lora_unet"),
    "text_encoder": ("text_encoder", "lora_te1"),
    "text_encoder_2": ("text_encoder_2", "lora_te2"),
}


class Kind:
    def __init__(self, directory):
        self.pipe = corpus.pipeline()
        self.linears = {
            name: loras.shapes_of(getattr(self.pipe, name), ("to_q", "to_k", "to_v", "q_proj", "fc1", "linear"))
            for name in _PREFIXES
        }
        self.weights = {name: _arrays(getattr(self.pipe, name)) for name in _PREFIXES}

    def case(self, rng, place):
        tensors, metadata = _file(rng, self.linears)
        tensors, metadata, changed = _change(rng, tensors, metadata)
        data = write(tensors, metadata)
        if rng.random() < 0.1:
            data, changed = mutation.changed_bytes(rng, data, 0, 3000), changed + ", bytes"
        file = place / "adapter.safetensors"
        file.write_bytes(data)
        return Case(lambda: self.use(file), (file.name,), changed)

    def use(self, file):
        networks = {name: getattr(self.pipe, name) for name in _PREFIXES}
        try:
            self.pipe.load_lora_weights(str(file))
            self.pipe.fuse_lora()
            fused = {name: _arrays(network) for name, network in networks.items()}
            self.pipe.unfuse_lora()
        finally:
            self.pipe.unload_lora_weights()
            for name, network in networks.items():  # what was fused with NaN stays NaN
                for key, tensor in network.state_dict().items():
                    tensor.set_value(self.weights[name][key])
        try:
            expected = self.expected(file.read_bytes())
        except (ValueError, KeyError, TypeError) as error:
            raise Wrong(f"it was accepted, and cannot be read: {error!r}") from error
        for name, weights in self.weights.items():
            for key, own in weights.items():
                change = np.asarray(expected.get((name, key), 0), np.float32)
                if own.ndim == 1 and change.size == own.size:  # a row of numbers for a bias
                    change = change.reshape(own.shape)
                if change.ndim and change.shape != own.shape:
                    raise Wrong(f"{name}.{key} {own.shape} took a change of the shape {change.shape}")
                difference = fused[name][key] - own - change
                bar = 1e-4 * (1 + np.abs(own + change).max())
                if np.isfinite(change).all() and not np.abs(difference).max() <= bar:
                    raise Wrong(f"{name}.{key} is not changed as the file says")

    def expected(self, data):
        """{(network, name of a weight or bias): change} by this module's own reading; Wrong for a key without one."""
        modules, found = {}, {}
        for network, prefixes in _PREFIXES.items():
            for key in self.weights[network]:
                module = key.rpartition(".")[0]
                for prefix in prefixes:
                    modules[f"{prefix}_{module}".replace(".", "_")] = network, module
        metadata = _metadata(data)
        for key, (code, array) in corpus.read_safetensors(data).items():
            match = _PART.fullmatch(key)
            place = modules.get(match[1].replace(".", "_")) if match else None
            if place is None:
                raise Wrong(f"the key {key!r} was accepted, and changes nothing")
            part = match[2].replace("lora_A.weight", "down").replace("lora_down.weight", "down")
            part = part.replace("lora_B.weight", "up").replace("lora_up.weight", "up")
            values = corpus.as_float32(code, array)
            found.setdefault(place, {})[part] = values[:, :, 0, 0] if values.shape[2:] == (1, 1) else values
        changes = {}
        for (network, module), parts in found.items():
            changes[(network, f"{module}.weight")] = _matrix(parts, _alpha(parts, network, module, metadata))
            if "diff_b" in parts:
                changes[(network, f"{module}.bias")] = parts["diff_b"]
        return changes


def _matrix(parts, alpha):
    """The change of a weight; 0 if it has none."""
    total = np.float32(0)
    with np.errstate(all="ignore"):
        if "down" in parts and "up" in parts:
            total = total + parts["up"] @ parts["down"] * _scale(alpha, parts["down"].shape[0])
        if "hada_w1_a" in parts:
            product = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
            total = total + product * _scale(alpha, parts["hada_w1_b"].shape[0])
        if "lokr_w1" in parts:
            total = total + np.kron(parts["lokr_w1"], parts["lokr_w2"])
        if "diff" in parts:
            total = total + parts["diff"]
    return np.asarray(total)


def _scale(alpha, rank):
    value, stabilised = alpha
    return np.float32(1.0 if value is None else value / (rank**0.5 if stabilised else rank))


def _alpha(parts, network, module, metadata):
    """(alpha or None, whether it is divided by the root of the rank)."""
    stabilised = bool(metadata.get(f"{network}.use_rslora"))
    if "alpha" in parts:
        return float(parts["alpha"].reshape(-1)[0]), stabilised
    for pattern, alpha in (metadata.get(f"{network}.alpha_pattern") or {}).items():
        simple = re.fullmatch(r"[\w.*]{1,8}", pattern) and not pattern.startswith("*") and "**" not in pattern
        if simple and re.fullmatch(rf"(.*\.)?({pattern})", module):  # the others match nothing here
            return alpha, stabilised
    return metadata.get(f"{network}.lora_alpha"), stabilised


def _metadata(data):
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads((header.get("__metadata__") or {}).get("lora_adapter_metadata", "{}")) or {}


def _arrays(network):
    return {name.replace(".base_layer.", "."): tensor.numpy().copy() for name, tensor in network.state_dict().items()}


def _file(rng, linears):
    """(tensors, metadata) of a sound adapter of some kind, in some program's names."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    style = rng.choice(("peft", "kohya"))
    tensors = {}
    for _ in range(rng.choice((1, 2, 4))):
        network = rng.choice(sorted(linears))
        module, (out, width) = rng.choice(sorted(linears[network].items()))
        key = f"{network}.{module}" if style == "peft" else f"{_PREFIXES[network][1]}_{module.replace('.', '_')}"
        algorithm = rng.choice(("lora", "lora", "loha", "lokr", "diff"))
        shapes = {
            "lora": {_ENDS[style]["down"]: (2, width), _ENDS[style]["up"]: (out, 2), ".alpha": ()},
            "loha": {
                ".hada_w1_a": (out, 2),
                ".hada_w1_b": (2, width),
                ".hada_w2_a": (out, 2),
                ".hada_w2_b": (2, width),
            },
            "lokr": {".lokr_w1": (2, 2), ".lokr_w2": (out // 2, width // 2)},
            "diff": {".diff": (out, width), ".diff_b": (out,)},
        }[algorithm]
        if algorithm == "lora" and style == "peft":
            del shapes[".alpha"]
        for end, shape in shapes.items():
            tensors[key + end] = np.asarray(numbers.standard_normal(shape), np.float32)
    metadata = {"format": "pt"}
    if style == "peft" and rng.random() < 0.5:
        metadata["lora_adapter_metadata"] = json.dumps(
            {
                "transformer.r": 2,
                "transformer.lora_alpha": 4,
                "transformer.alpha_pattern": {},
                "transformer.rank_pattern": {},
            }
        )
    return tensors, metadata


_NUMPY = ("float16", "float64", "int8", "int32", "uint8", "bool", "uint16")


def _change(rng, tensors, metadata):
    """(tensors, metadata, what was changed)."""
    key = rng.choice(sorted(tensors))
    array = tensors[key]
    choice = rng.randrange(12)
    if choice == 0:
        return tensors, metadata, "nothing"
    if choice == 1:
        del tensors[key]
        return tensors, metadata, f"without {key}"
    if choice < 4:
        new = rng.choice(
            (
                key + "x",
                key[1:],
                key.replace("0", "7"),
                key.replace("to_q", "to_k"),
                mutation.text(rng),
                key.replace(".", "_"),
                key.upper(),
            )
        )
        tensors[new] = tensors.pop(key)
        return tensors, metadata, f"{key} -> {new!r}"
    if choice == 4:
        end = rng.choice(
            (
                ".alpha",
                ".diff_b",
                ".diff",
                ".lokr_w1",
                ".dora_scale",
                ".hada_w1_a",
                ".lora_A.weight",
                ".lora_mid.weight",
                ".diff_x",
            )
        )
        new = re.sub(r"\.(lora|alpha|hada|lokr|diff).*", "", key) + end
        tensors[new] = array.reshape(-1)[: rng.choice((1, 2, 32))]
        return tensors, metadata, f"{new} beside"
    if choice == 5:
        shape = rng.choice(
            (array.shape[::-1], (*array.shape, 1, 1), (1, *array.shape), (array.size,), (0, *array.shape))
        )
        tensors[key] = array.reshape(shape) if np.prod(shape) == array.size else np.zeros(shape, np.float32)
        return tensors, metadata, f"{key} {array.shape} -> {shape}"
    if choice == 6:
        dtype = rng.choice(_NUMPY)
        tensors[key] = (array * 3).astype(dtype)
        return tensors, metadata, f"{key} as {dtype}"
    if choice == 7:
        tensors[key] = np.full_like(array, rng.choice((np.nan, np.inf, 1e38, 0, 1e-45)))
        return tensors, metadata, f"{key} of {tensors[key].reshape(-1)[:1]}"
    if choice == 8:
        metadata = {
            **metadata,
            rng.choice(("format", "lora_adapter_metadata", "ss_network_dim", "\0")): mutation.text(rng),
        }
        return tensors, metadata, f"metadata {metadata}"
    settings = {"transformer.r": 2, "transformer.lora_alpha": 4, "transformer.use_rslora": False}
    settings[rng.choice(("transformer.alpha_pattern", "transformer.rank_pattern", "text_encoder.alpha_pattern"))] = {
        rng.choice(
            ("(a+)+$", "(" * 50, "[", "(.*)*x" * 20, "to_q", ".*", "\\", mutation.text(rng)[:200])
        ): mutation.number(rng)
    }
    if choice > 9:
        settings, _ = mutation.mutated(rng, settings)
    metadata = {**metadata, "lora_adapter_metadata": mutation.json_text(rng, settings).decode("latin-1")}
    return tensors, metadata, f"metadata {settings}"


_CODES = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int8": "I8",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
    "uint16": "U16",
}


def write(tensors, metadata=None):
    """The bytes of a safetensors file, written without ppsd3."""
    header, body = ({"__metadata__": metadata} if metadata else {}), b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body
