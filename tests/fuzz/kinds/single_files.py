"""Whole pipelines and single networks in one file, under the names of other programs."""

from __future__ import annotations

import json

import numpy as np

from .. import corpus, mutation
from ..case import Case, Wrong
from .safetensors import _changed_file

_CLASSES = {
    "transformer": "SD3Transformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModelWithProjection",
}


class Kind:
    def __init__(self, directory):
        from ppsd3 import convert

        self.model = directory / "model"
        corpus.pipeline(self.model)
        convert(self.model, directory / "whole.safetensors")
        self.data = (directory / "whole.safetensors").read_bytes()

    def case(self, rng, place):
        file = place / "whole.safetensors"
        choice = rng.randrange(4)
        if choice == 0:
            changed, data = self._renamed(rng)
        elif choice == 1:
            changed, data = self._metadata(rng)
        else:
            changed, data = _changed_file(rng, self.data)
        file.write_bytes(data)
        use = rng.choice(("info", "info", "network", "network", "network", "pipeline", "convert"))
        component = rng.choice(sorted(_CLASSES))
        runs = {
            "info": lambda: corpus.command("info", file),
            "network": lambda: self._network(component, file),
            "pipeline": lambda: self._pipeline(file),
            "convert": lambda: corpus.command("convert", file, place / "new", "--config", self.model),
        }
        return Case(runs[use], (file.name,), f"{use} {component if use == 'network' else ''}: {changed}")

    def _network(self, component, file):
        import ppsd3

        config = json.loads((self.model / component / "config.json").read_text())
        class_ = getattr(ppsd3, _CLASSES[component])
        subfolder = {"subfolder": component} if component == "text_encoder" else {}
        network = class_.from_single_file(file, config=config, **subfolder)
        _check(network, file)

    def _pipeline(self, file):
        import ppsd3

        _check(ppsd3.StableDiffusion3Pipeline.from_single_file(file, config=self.model).transformer, file)

    def _header(self):
        length = int.from_bytes(self.data[:8], "little")
        return json.loads(self.data[8 : 8 + length]), self.data[8 + length :]

    def _renamed(self, rng):
        content, body = self._header()
        for _ in range(rng.choice((1, 3, 30))):
            key = rng.choice(sorted(content))
            new = rng.choice(
                (key[1:], "model." + key, key.rpartition(".")[0], key.replace("0", "99"), mutation.text(rng), key[:20])
            )
            content[new] = content.pop(key)
        text = json.dumps(content).encode()
        return f"names, e.g. {key} -> {new!r}", len(text).to_bytes(8, "little") + text + body

    def _metadata(self, rng):
        content, body = self._header()
        metadata, keys = mutation.mutated(rng, content.get("__metadata__") or {"format": "pt"})
        if isinstance(metadata, dict) and rng.random() < 0.7:
            texts = {
                str(key): value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()
            }
            for key in rng.sample(sorted(texts), min(1, len(texts))):
                inner = _inner(texts[key])
                texts[key] = mutation.json_text(rng, mutation.mutated(rng, inner)[0]).decode("latin-1")
            metadata = texts
        content["__metadata__"] = metadata
        text = json.dumps(content).encode()
        return f"metadata {keys}", len(text).to_bytes(8, "little") + text + body


def _inner(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check(network, file):
    """Every tensor of the network has values that the file holds."""
    try:
        stored = corpus.read_safetensors(file.read_bytes())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Wrong(f"{file.name} was accepted, and is no safetensors file: {error}") from error
    values = [corpus.as_float32(*entry) for entry in stored.values()]
    known = {tuple(np.sort(array.ravel())[:4].tolist()) for array in values if array is not None}
    whole = np.concatenate([array.ravel() for array in values if array is not None])
    whole = np.sort(whole[np.isfinite(whole)])
    for name, tensor in network.state_dict().items():
        array = tensor.numpy().ravel()
        array = array[np.isfinite(array)]
        if tuple(np.sort(array)[:4].tolist()) in known or not array.size:
            continue
        at = np.searchsorted(whole, array).clip(0, len(whole) - 1)
        if not (whole[at] == array).all():
            raise Wrong(f"{name} has values that the file does not hold")
