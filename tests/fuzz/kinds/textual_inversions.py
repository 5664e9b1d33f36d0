"""Learnt words: keys, shapes, dtypes, values, tokens. What is accepted is what the file holds."""

from __future__ import annotations

import numpy as np

from .. import corpus, mutation
from ..case import Case, Wrong
from .lora import write

_WIDTHS = {"clip_l": 16, "clip_g": 12}


class Kind:
    def __init__(self, directory):
        self.pipe = corpus.pipeline()

    def case(self, rng, place):
        tensors = {key: np.ones((2, width), np.float32) * 0.1 for key, width in _WIDTHS.items()}
        choice = rng.randrange(6)
        if choice < 2:
            tensors = {("emb_params", "<cat>")[choice]: tensors["clip_l"]}
        if rng.random() < 0.7:
            key = rng.choice(sorted(tensors))
            tensors[key] = _changed(rng, tensors[key])
        if rng.random() < 0.3:
            key = rng.choice(sorted(tensors))
            tensors[mutation.text(rng)] = tensors.pop(key)
        metadata = {"token": mutation.text(rng)} if rng.random() < 0.3 else None
        data = write(tensors, metadata)
        if rng.random() < 0.2:
            data = mutation.changed_bytes(rng, data)
        file = place / rng.choice(("word.safetensors", "learned_embeds.safetensors", "a red.safetensors"))
        file.write_bytes(data)
        token = rng.choice((None, None, "<dog>", mutation.text(rng)))
        shown = {key: (array.dtype.name, array.shape) for key, array in tensors.items()}
        return Case(lambda: self.use(file, token), (file.name, "token"), f"{shown} {metadata} token={token!r}")

    def use(self, file, token):
        towers = self.pipe.text_encoder, self.pipe.text_encoder_2
        before = [len(tower.get_input_embeddings().weight) for tower in towers]
        try:
            self.pipe.load_textual_inversion(str(file), token=token)
            held = np.concatenate(
                [tower.get_input_embeddings().weight[count:].numpy().ravel() for tower, count in zip(towers, before)]
            )
        finally:
            if any(len(tower.get_input_embeddings().weight) > count for tower, count in zip(towers, before)):
                self.pipe.unload_textual_inversion()
        stored = [corpus.as_float32(*entry) for entry in corpus.read_safetensors(file.read_bytes()).values()]
        if None not in [type(values) if values is None else 0 for values in stored]:
            if not np.array_equal(np.sort(held), np.sort(np.concatenate([values.ravel() for values in stored]))):
                raise Wrong("the vectors are not those in the file")


def _changed(rng, array):
    shapes = ((16,), (12,), (0, 16), (1, 2, 16), (2, 17), (), (16, 2), (300, 16))
    choice = rng.randrange(3)
    if choice == 0:
        return np.zeros(rng.choice(shapes), np.float32)
    if choice == 1:
        return array.astype(rng.choice(("float16", "float64", "int8", "uint16", "bool")))
    return np.full_like(array, rng.choice((np.nan, np.inf, 1e38)))
