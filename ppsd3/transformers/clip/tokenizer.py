"""CLIP's byte-pair tokenizer: lower case, words end in ``</w>``, 77 ids with start and end."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

from ...utils.checking import checks_arguments, fit, shown
from ...utils.errors import CheckpointFormatError
from ...utils.json_files import MOST_BYTES_OF_VOCABULARY, read_json, read_small_text
from ..tokenization import MOST_TOKENS, PretrainedTokenizer, check_model_type, checked_token, content_of, library_errors

if TYPE_CHECKING:
    from typing_extensions import Self

_END_OF_WORD = "</w>"
# One word, one contraction, one digit or one run of anything else.
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class CLIPTokenizer(PretrainedTokenizer):
    """Text to CLIP's ids, equal to those of transformers' ``CLIPTokenizer``.

    Reads ``tokenizer.json``, or ``vocab.json`` with ``merges.txt``. SD3's two towers differ in padding: CLIP-L pads
    with ``<|endoftext|>``, bigG with ``!`` (id 0); the files say which. As in transformers, a ``!`` that pads is a
    special token, so that one in a text becomes id 0 too.

    Args:
        vocab: token -> id.
        merges: in order of priority.
        tokens, added_tokens, model_max_length: see ``PretrainedTokenizer``. ``model_max_length`` is 77 by default.
    """

    default_tokens = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    default_max_length = 77
    vocabulary_files = ("tokenizer.json", "vocab.json with merges.txt")
    starts_with_bos = True
    needed_tokens = ("bos_token", "eos_token")

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Sequence[Sequence[str]],
        tokens: Mapping[str, Any] | None = None,
        added_tokens: Sequence[Mapping[str, Any]] = (),
        model_max_length: int | None = None,
    ) -> None:
        self._vocab, self._merges = _checked_vocabulary(vocab), _checked_merges(merges)
        named = {**self.default_tokens, **(fit("tokens", tokens, Optional[Mapping]) or {})}
        backend = _build(self._vocab, self._merges, content_of(checked_token("unk_token", named["unk_token"])))
        super().__init__(backend, tokens, added_tokens, model_max_length)

    @classmethod
    def published(cls, pad_token: str = "<|endoftext|>") -> Self:
        """The tokenizer of all published CLIP models, built in: 49408 ids.

        The vocabulary is that of OpenAI's CLIP (MIT licence); it follows from the merges, which are beside this module.

        Args:
            pad_token: ``"<|endoftext|>"`` for CLIP-L, ``"!"`` for bigG.
        """
        with gzip.open(os.path.join(os.path.dirname(__file__), "merges.txt.gz"), "rt", encoding="utf-8") as file:
            merges = [tuple(line.split()) for line in file if not line.startswith("#version")]
        return cls(_vocabulary_of(merges), merges, {"pad_token": pad_token})

    @classmethod
    def _from_files(cls, path, content, settings):
        vocabulary = _read_vocabulary(path, content)
        if vocabulary is None:
            return None
        return cls(*vocabulary, settings["tokens"], settings["added_tokens"], settings["model_max_length"])

    @checks_arguments
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return super().decode(ids, skip_special_tokens).replace(_END_OF_WORD, " ").strip()

    def _post_processor(self):
        from tokenizers.processors import RobertaProcessing

        return RobertaProcessing(
            (self.eos_token, self.eos_token_id),
            (self.bos_token, self.bos_token_id),
            trim_offsets=False,
            add_prefix_space=False,
        )

    def _extra_settings(self):
        return {"add_prefix_space": False, "do_lower_case": True, "errors": "replace"}

    def _vocabulary_contents(self):
        merges = "".join(f"{first} {second}\n" for first, second in self._merges)
        return {
            "vocab.json": json.dumps(self._vocab, ensure_ascii=False).encode(),
            "merges.txt": f"#version: 0.2\n{merges}".encode(),
        }


def _build(vocab, merges, unk_token):
    """The ``tokenizers`` pipeline of transformers 5's CLIPTokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    with library_errors("CLIP's vocabulary and merges do not fit together"):
        model = BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix=_END_OF_WORD, unk_token=unk_token)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _checked_vocabulary(vocab):
    """``vocab``, if it is token -> id, with each id from 0 on once: an added token's id is the number of them."""
    if not isinstance(vocab, dict) or set(map(type, vocab)) != {str}:
        raise CheckpointFormatError(f"The vocabulary is {shown(vocab)}; it has to be a dict of tokens and their ids.")
    if set(map(type, vocab.values())) != {int}:
        wrong = next(token for token, id in vocab.items() if type(id) is not int)
        raise CheckpointFormatError(
            f"The vocabulary gives {shown(wrong)} the id {shown(vocab[wrong])}, no whole number."
        )
    if len(vocab) > MOST_TOKENS or sorted(vocab.values()) != list(range(len(vocab))):
        raise CheckpointFormatError(
            f"The vocabulary has {len(vocab):,} tokens with ids from {shown(min(vocab.values()))} to "
            f"{shown(max(vocab.values()))}; it has to have each id from 0 on once, below {MOST_TOKENS:,}."
        )
    return vocab


def _checked_merges(merges):
    """``merges`` as pairs of str."""
    if not isinstance(merges, (list, tuple)):
        raise CheckpointFormatError(f"The merges are {shown(merges)}; they have to be a list.")
    if not set(map(type, merges)) <= {list, tuple} or set(map(len, merges)) - {2} or _kinds(merges) - {str}:
        wrong = next((merge for merge in merges if not _is_pair(merge)), None)
        if wrong is not None:
            raise CheckpointFormatError(f"The merges have {shown(wrong)}; each should be two tokens.")
    return [tuple(merge) for merge in merges]


def _is_pair(merge):
    return isinstance(merge, (list, tuple)) and len(merge) == 2 and all(isinstance(part, str) for part in merge)


def _kinds(merges):
    """The types of all parts; there are a hundred thousand of them."""
    return set(map(type, itertools.chain.from_iterable(merges)))


def _vocabulary_of(merges):
    """token -> id: all bytes, all bytes that end a word, the merges in order, start and end."""
    # GPT-2's way of writing bytes: those that print stand for themselves, the others for characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [letter + _END_OF_WORD for letter in letters]
    tokens = [*letters, *words, *("".join(merge) for merge in merges), "<|startoftext|>", "<|endoftext|>"]
    return {token: id for id, token in enumerate(tokens)}


def _read_vocabulary(path, content):
    """``(vocab, merges)`` from the parsed tokenizer.json or the classic files in ``path``; None if neither is there."""
    if content:
        check_model_type(content, "BPE", path)
        model = content["model"]
        if model.get("end_of_word_suffix") != _END_OF_WORD:
            raise CheckpointFormatError(
                f"{os.path.join(path, 'tokenizer.json')} is a byte-pair vocabulary whose words do not end in "
                f"{_END_OF_WORD!r}, so it is not CLIP's; train it with end_of_word_suffix={_END_OF_WORD!r}."
            )
        # Written as "a b" up to tokenizers 0.19, as ["a", "b"] since.
        merges = model.get("merges")
        listed = merges if isinstance(merges, list) else [merges]
        return model["vocab"], [m.split(" ") if isinstance(m, str) else m for m in listed]
    vocab_file, merges_file = os.path.join(path, "vocab.json"), os.path.join(path, "merges.txt")
    if not (os.path.isfile(vocab_file) and os.path.isfile(merges_file)):
        return None
    vocab = read_json(vocab_file, "the vocabulary of a CLIPTokenizer", MOST_BYTES_OF_VOCABULARY)
    return vocab, _read_merges(merges_file)


def _read_merges(file):
    text = read_small_text(file, "the merges of a CLIPTokenizer", MOST_BYTES_OF_VOCABULARY, CheckpointFormatError)
    lines = text.replace("\r\n", "\n").split("\n")  # not splitlines(): some of CLIP's merges are other line breaks
    merges = [line.split(" ") for line in lines if not line.startswith("#version") and line.strip()]
    for merge in merges:
        if len(merge) != 2:
            raise CheckpointFormatError(f"{file} has the line {' '.join(merge)!r}; each should be two tokens.")
    return merges
