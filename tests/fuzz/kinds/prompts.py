"""Prompts: weights, brackets, unicode, control characters, lengths, lists of them."""

from __future__ import annotations

import numpy as np

from .. import corpus, mutation
from ..case import Case, Wrong

_PIECES = (
    "a red circle", "(", ")", "[", "]", ":", "(a:", "1.3)", "((", "))", ":1.5)", "\\(", "\\", "BREAK", " BREAK ",
    "(b:1.1)", "(c:-1)", "(d:1e9)", "(e:nan)", "(f:inf)", "(g:1e-9)", "AND",
    "<|endoftext|>", "<|startoftext|>", "</s>", "<pad>",
    "\u0301" * 5, "\0", "\n", "\u202e", "🙂", "中文", "\ud800", "'s", "  ",
)  # fmt: skip
_LONG = (
    "(" * 20_000,
    "a " * 20_000,
    "a" * 50_000,
    "[(" * 10_000,
    "(a:1.1" * 5000,
    "\\(" * 20_000,
    "BREAK " * 3000,
    " " * 100_000,
    ":" * 30_000,
    "é" * 30_000,
    "a:1.1)" * 5000,
)
_NAMES = ("prompt", "negative_prompt", "prompt_2", "prompt_3", "negative_prompt_3")


class Kind:
    def __init__(self, directory):
        from ppsd3 import WeightedPrompts

        self.pipe = corpus.pipeline()
        self.readers = [self.pipe.prompt_reader, WeightedPrompts(), WeightedPrompts("mean")]

    def case(self, rng, place):
        reader = rng.choice(self.readers)
        texts = {"prompt": "a", "prompt_2": None, "prompt_3": None}
        names = {rng.choice(_NAMES) for _ in range(rng.choice((1, 1, 2)))}
        texts.update({name: _prompt(rng) for name in sorted(names)})
        texts["num_images_per_prompt"] = rng.choice((1, 1, 2))
        draws = rng.random() < 0.1
        shown = {name: repr(text)[:80] for name, text in texts.items()}
        return Case(lambda: self.use(reader, texts, draws), (*names, "The prompt"), f"{type(reader).__name__} {shown}")

    def use(self, reader, texts, draws):
        self.pipe.prompt_reader = reader
        if draws:
            images = self.pipe(**texts, **corpus.SMALL_CALL, output_type="np").images
            if not np.isfinite(images).all():
                raise Wrong("the picture is not finite")
            return
        for features in self.pipe.encode_prompt(**texts):
            if features is not None and not np.isfinite(features.numpy()).all():
                raise Wrong("the features are not finite")


def _prompt(rng):
    choice = rng.randrange(12)
    if choice < 7:
        return "".join(rng.choice(_PIECES) for _ in range(rng.choice((1, 3, 8, 60))))
    if choice == 7:
        return rng.choice(_LONG)
    if choice == 8:
        return mutation.text(rng)
    if choice == 9:
        return [_prompt(rng) for _ in range(rng.choice((0, 1, 2)))]
    if choice == 10:
        return tuple(mutation.text(rng) for _ in range(2))
    return mutation.value(rng)
