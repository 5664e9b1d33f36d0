"""T5's unigram tokenizer: SentencePiece's vocabulary and normalization, ``</s>`` at the end, no start token."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Optional

from ...utils.checking import Range, fit, shown
from ...utils.errors import CheckpointFormatError
from ...utils.json_files import MOST_BYTES_OF_VOCABULARY, parse_json, read_small_file
from ..tokenization import MOST_TOKENS, PretrainedTokenizer, check_model_type, library_errors
from .sentencepiece_model import check_charsmap, read_sentencepiece_model, write_sentencepiece_model

_Count, _Id = Annotated[int, Range(0, 1 << 14)], Annotated[int, Range(0, MOST_TOKENS)]
_WORD_START = "▁"


class T5Tokenizer(PretrainedTokenizer):
    """Text to T5's ids, equal to those of transformers' ``T5Tokenizer`` / ``T5TokenizerFast``.

    Reads ``tokenizer.json``, or ``spiece.model``. The sentinels ``<extra_id_0>``, ``<extra_id_1>``, ... that T5 was
    pre-trained with are at the end of the vocabulary, in falling order.

    Args:
        vocab: pieces and their log probabilities, in order of id.
        charsmap: SentencePiece's compiled normalization rules. Default None: no normalization.
        unk_id: id of the piece for what is not in the vocabulary.
        extra_ids: number of sentinels that the tokenizer has; those that ``vocab`` does not hold are added
            behind it. Default 100.
        spiece: the file that all this was read from, to be saved again. Default: one is made, for PaddleNLP.
        tokens, added_tokens, model_max_length: see ``PretrainedTokenizer``. ``model_max_length`` is 512 by default.
    """

    default_tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    default_max_length = 512
    vocabulary_files = ("tokenizer.json", "spiece.model")

    def __init__(
        self,
        vocab: Sequence[tuple[str, float]],
        charsmap: bytes | None = None,
        unk_id: int = 2,
        extra_ids: int = 100,
        spiece: bytes | None = None,
        tokens: Mapping[str, Any] | None = None,
        added_tokens: Sequence[Mapping[str, Any]] = (),
        model_max_length: int | None = None,
    ) -> None:
        self.extra_ids = fit("extra_ids", extra_ids, _Count, CheckpointFormatError)
        self._spiece, charsmap = fit("spiece", spiece, Optional[bytes]), fit("charsmap", charsmap, Optional[bytes])
        backend = _build(_checked_pieces(vocab), charsmap, fit("unk_id", unk_id, _Id, CheckpointFormatError))
        super().__init__(backend, tokens, added_tokens, model_max_length)
        self._add_tokens(sentinels(extra_ids))

    @classmethod
    def _from_files(cls, path, content, settings):
        config = settings.pop("config")
        settings["extra_ids"] = _number_of_sentinels(config)
        spiece_file = os.path.join(path, "spiece.model")
        if os.path.isfile(spiece_file):
            settings["spiece"] = read_small_file(
                spiece_file, "SentencePiece's vocabulary", MOST_BYTES_OF_VOCABULARY, CheckpointFormatError
            )
        if content:
            check_model_type(content, "Unigram", path)
            unk_id = content["model"].get("unk_id")
            return cls(content["model"]["vocab"], _charsmap(content), 2 if unk_id is None else unk_id, **settings)
        if "spiece" not in settings:
            return None
        model = read_sentencepiece_model(settings["spiece"], source=spiece_file)
        # Those that the files list are added in the order of their ids.
        listed = {token.get("content") for token in settings["added_tokens"] if isinstance(token, dict)}
        behind = [sentinel for sentinel in reversed(sentinels(settings["extra_ids"])) if sentinel not in listed]
        vocab = model.pieces + [(sentinel, 0.0) for sentinel in behind]
        settings["added_tokens"] = [*settings["added_tokens"], *model.added_tokens]
        return cls(vocab, model.charsmap, model.unk_id, **settings)

    def _post_processor(self):
        from tokenizers.processors import TemplateProcessing

        end = self.eos_token
        return TemplateProcessing(
            single=["$A", end], pair=["$A", end, "$B", end], special_tokens=[(end, self.eos_token_id)]
        )

    def _extra_settings(self):
        return {"extra_ids": self.extra_ids}

    def _vocabulary_contents(self):
        spiece = self._spiece or self._made_spiece()
        return {} if spiece is None else {"spiece.model": spiece}

    def _made_spiece(self):
        """The bytes of a ``spiece.model`` with this vocabulary, or None if SentencePiece cannot hold it."""
        content = parse_json(self._backend.to_str(), "the tokenizer")
        pieces = [(piece, score) for piece, score in content["model"]["vocab"]]
        behind = sentinels(self.extra_ids)  # which readers put behind the pieces themselves
        while pieces and pieces[-1][0] in behind:
            pieces.pop()
        control = {token for token in (self.pad_token, self.eos_token, self.bos_token) if token is not None}
        return write_sentencepiece_model(pieces, content["model"]["unk_id"], control, _charsmap(content))


def sentinels(count: int) -> list[str]:
    """``["<extra_id_0>", ..., "<extra_id_{count - 1}>"]``."""
    return [f"<extra_id_{i}>" for i in range(count)]


def _build(vocab, charsmap, unk_id):
    """The ``tokenizers`` pipeline of transformers 5's T5Tokenizer."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import Unigram

    with library_errors("the vocabulary of a T5Tokenizer cannot be used"):
        backend = Tokenizer(Unigram(vocab, unk_id=unk_id, byte_fallback=False))
        if charsmap:
            check_charsmap(charsmap)
            backend.normalizer = normalizers.Precompiled(charsmap)
    metaspace = {"replacement": _WORD_START, "prepend_scheme": "always", "split": True}
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace)]
    )
    backend.decoder = decoders.Metaspace(**metaspace)
    return backend


def _number_of_sentinels(config):
    listed = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    contents = [token.get("content") if isinstance(token, dict) else token for token in listed]
    named = sum(isinstance(content, str) and content.startswith("<extra_id_") for content in contents)
    return fit("extra_ids", config.get("extra_ids", named or 100), _Count, CheckpointFormatError)


def _charsmap(content):
    """The compiled normalization rules in a parsed tokenizer.json, or None."""
    normalizer = fit("normalizer", content.get("normalizer") or {}, dict, CheckpointFormatError)
    for step in fit("normalizers", normalizer.get("normalizers", [normalizer]), list[dict], CheckpointFormatError):
        if step.get("type") == "Precompiled" and step.get("precompiled_charsmap"):
            rules = fit("precompiled_charsmap", step["precompiled_charsmap"], str, CheckpointFormatError)
            try:
                return base64.b64decode(rules)
            except ValueError as error:
                raise CheckpointFormatError(f"`precompiled_charsmap` is not in base64 ({error}).") from error
    return None


def _is_piece(pair):
    is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2
    return is_pair and isinstance(pair[0], str) and isinstance(pair[1], (float, int)) and pair[1] == pair[1]


def _checked_pieces(vocab):
    """``vocab`` as pairs of str and float."""
    if not isinstance(vocab, (list, tuple)) or not 0 < len(vocab) <= MOST_TOKENS:
        raise CheckpointFormatError(f"The vocabulary is {shown(vocab)}; it has to be a list of 1 to {MOST_TOKENS:,}.")
    are_pairs = set(map(type, vocab)) <= {list, tuple} and set(map(len, vocab)) == {2}
    pieces, scores = zip(*vocab) if are_pairs else ((), ())
    if set(map(type, pieces)) != {str} or not set(map(type, scores)) <= {float, int} or any(s != s for s in scores):
        wrong = next((pair for pair in vocab if not _is_piece(pair)), None)
        if wrong is not None:
            raise CheckpointFormatError(f"The vocabulary has {shown(wrong)}; it has pairs of text and a number.")
    return [(piece, float(score)) for piece, score in vocab]
