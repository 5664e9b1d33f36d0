"""The bundled model's tokenizers: small vocabularies in CLIP's and T5's formats, trained on the world's captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..transformers import CLIPTokenizer, T5Tokenizer
from ..utils.json_files import parse_json
from .world import caption, sample_scene

MAX_LENGTH = 32  # a caption of 20 words, its commas, and start and end fit


def captions(count: int, seed: int = 0) -> list[str]:
    """``count`` training captions."""
    rng = np.random.default_rng(seed)
    return [caption(sample_scene(rng), rng) for _ in range(count)]


def train_clip_tokenizers(texts: Iterable[str]) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """A byte-pair tokenizer for each CLIP tower; the second pads with ``!`` (id 0) as SD3's does.

    The vocabulary is in CLIP's order: bytes, bytes that end a word, merges, start and end of text.
    """
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE

    alphabet = _byte_alphabet()
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=alphabet, end_of_word_suffix="</w>", min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = parse_json(tokenizer.to_str(), "the tokenizer")["model"]
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    words = alphabet + [letter + "</w>" for letter in alphabet]
    for merge in merges:
        if "".join(merge) not in words:
            words.append("".join(merge))
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(words)}
    common: dict[str, Any] = dict(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
    return CLIPTokenizer(**common), CLIPTokenizer(**common, tokens={**CLIPTokenizer.default_tokens, "pad_token": "!"})


def train_t5_tokenizer(texts: Iterable[str]) -> T5Tokenizer:
    """A unigram tokenizer in T5's layout: pad 0, end 1, unknown 2, whole words, then single characters for the rest.

    SentencePiece's own trainer prunes 59 distinct words to fragments, which makes captions twice as long; over whole
    words the maximum-likelihood unigram model is simply their frequencies.
    """
    words = Counter(word for text in texts for word in text.replace(",", " ,").split())
    total = sum(words.values())
    pieces = {("," if word == "," else "▁" + word): math.log(count / total) for word, count in sorted(words.items())}
    rare = min(pieces.values()) - 5.0  # a character is used only where no word fits
    letters = {letter: rare for letter in ["▁", *map(chr, range(33, 127))] if letter not in pieces}
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces.items(), *letters.items()]
    return T5Tokenizer(vocab, unk_id=2)


def _byte_alphabet():
    """The 256 characters that stand for bytes in GPT-2's and CLIP's vocabularies, ``!`` first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
