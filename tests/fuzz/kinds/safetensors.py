"""Networks in one safetensors file or in shards: headers, data, lengths, indices."""

from __future__ import annotations

import json
import struct

import numpy as np

from .. import corpus, mutation
from ..case import Case, Wrong

_CLASSES = {"text_encoder_3": "T5EncoderModel", "transformer": "SD3Transformer2DModel"}


class Kind:
    def __init__(self, directory):
        self.sources = []
        networks = corpus.networks()
        for name, class_name in _CLASSES.items():
            for form, size in (("file", "1GB"), ("shards", "20KB")):
                networks[name].save_pretrained(directory / form / name, max_shard_size=size)
                self.sources.append((directory / form / name, class_name))

    def case(self, rng, place):
        source, class_name = rng.choice(self.sources)
        folder = place / source.name
        corpus.link(source, folder)
        indices = sorted(folder.glob("*.index.json"))
        if indices and rng.random() < 0.5:
            file = indices[0]
            content, keys = mutation.mutated(rng, json.loads(file.read_text()))
            changed = f"{file.name}: {keys}"
            data = mutation.json_text(rng, content)
        else:
            file = rng.choice(sorted(folder.glob("*.safetensors")))
            changed, data = _changed_file(rng, file.read_bytes())
        corpus.replace(file, data)
        return Case(lambda: _load(class_name, folder), (str(folder),), f"{file.name}: {changed}")


def _load(class_name, folder):
    import ppsd3

    network = getattr(ppsd3, class_name).from_pretrained(folder)
    expected = {}
    for file in folder.glob("*.safetensors"):
        try:
            expected.update(corpus.read_safetensors(file.read_bytes()))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Wrong(f"{file.name} was accepted, and is no safetensors file: {error}") from error
    for name, tensor in network.state_dict().items():
        if name in expected:
            values = corpus.as_float32(*expected[name])
            if values is not None and not np.array_equal(tensor.numpy(), values, equal_nan=True):
                raise Wrong(f"{name} is not what the file holds")


def _changed_file(rng, data):
    """(what was changed, the new bytes)."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    choice = rng.randrange(8)
    if choice == 0:
        return "length", struct.pack("<Q", rng.choice(mutation.NUMBERS) % 2**64) + header + body
    if choice == 1:
        return "header's bytes", mutation.changed_bytes(rng, data, 8, 8 + length)
    if choice == 2:
        return "bytes", mutation.changed_bytes(rng, data)
    if choice == 3:
        return "one bit of the header", _with_header(bytes(_flipped(rng, header)), body)
    content = json.loads(header)
    names = sorted(name for name in content if name != "__metadata__")
    if choice == 4 and len(names) > 1:  # entries change places: of one shape, that is another file, and a sound one
        one, other = rng.sample(names, 2)
        content[one], content[other] = content[other], content[one]
        return f"{one} and {other} change places", _with_header(json.dumps(content).encode(), body)
    if choice == 5:
        name = rng.choice(names)
        content[name][rng.choice(("dtype", "shape"))] = _odd_entry(rng)
        return name, _with_header(json.dumps(content).encode(), body)
    content, keys = mutation.mutated(rng, content)
    return f"header {keys}", _with_header(mutation.json_text(rng, content), body)


def _odd_entry(rng):
    return rng.choice(
        (
            "F16", "BF16", "I32", "F64", "F8_E4M3", "F4", "C64", "BOOL", [], [0], [1], [-1, -1], [2**63],
            [2**32, 2**32], [1] * 64, [0, 2**40], [1.0], [True], ["1"], mutation.value(rng),
        )
    )  # fmt: skip


def _flipped(rng, data):
    data = bytearray(data)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _with_header(header, body):
    return struct.pack("<Q", len(header)) + header + body
