"""Prompts -> token ids, and what becomes of the features that a text tower makes of them.

``pipe.prompt_reader`` decides: :class:`PromptReader` takes a prompt as it is, :class:`WeightedPrompts` reads weights in
it and lets it be of any length.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

import numpy as np
import paddle

from ...utils.checking import checks_arguments, shown
from ...utils.errors import InputError
from ...utils.foreign import require_own
from ...utils.logging import get_logger

logger = get_logger(__name__)


@dataclasses.dataclass
class PromptTokens:
    """B prompts for one tower, each in as many rows as the longest needs.

    Attributes:
        ids: [B, chunks, L], int64.
        weights: [B, chunks, L], of each token; None if all are 1.
        empty: [L], the tokens of the empty prompt.
    """

    ids: np.ndarray
    weights: np.ndarray | None = None
    empty: np.ndarray | None = None

    @property
    def chunks(self) -> int:
        """Rows of each prompt."""
        return self.ids.shape[1]

    def with_chunks(self, count: int) -> PromptTokens:
        """The same with empty rows up to ``count`` for each prompt."""
        missing = count - self.chunks
        if not missing:
            return self
        assert self.empty is not None  # rows are missing where a reader makes several
        batch, _, length = self.ids.shape
        ids = np.concatenate([self.ids, np.broadcast_to(self.empty, (batch, missing, length))], axis=1)
        weights = self.weights
        if weights is not None:
            weights = np.concatenate([weights, np.ones((batch, missing, length), np.float32)], axis=1)
        return PromptTokens(ids, weights, self.empty)

    def rows(self) -> paddle.Tensor:
        """Tensor [B * chunks, L] for the tower; with weights, one more row at the end: the empty prompt."""
        rows = self.ids.reshape(-1, self.ids.shape[-1])
        if self.weights is not None and self.empty is not None:
            rows = np.concatenate([rows, self.empty[None]])
        return paddle.to_tensor(rows, dtype="int64", place=paddle.CPUPlace())  # where the tower checks them


class PromptReader:
    """Takes prompts as they are; what a tower cannot read is cut off, with a warning."""

    def read(
        self, name: str, tokenizer: Any, prompts: list[str], length: int, reason: str, in_chunks: bool
    ) -> PromptTokens:
        """Tokens of ``prompts`` for one tower.

        Args:
            name: of the tokenizer, for messages.
            tokenizer, prompts: what reads, and what is read.
            length: ids of a row.
            reason: why no more, for the warning.
            in_chunks: whether a longer prompt may go on in further rows.
        """
        tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True)
        for removed in getattr(tokens, "truncated", None) or _cut_off(tokenizer, prompts, length):
            if removed:
                _warn_of_cut(name, reason, removed)
        return PromptTokens(np.asarray(tokens.input_ids)[:, None])

    def emphasize(self, features: paddle.Tensor, empty: paddle.Tensor, weights: paddle.Tensor) -> paddle.Tensor:
        """``features [B, S, D]``, those of the empty prompt ``[1, S, D]``, and ``weights [B, S, 1]`` -> [B, S, D]."""
        return features


class WeightedPrompts(PromptReader):
    r"""Reads weights in prompts, as AUTOMATIC1111's web UI has made them known, and prompts of any length.

    ::

        (word)          1.1 times as much            ((word))     1.21 times
        [word]          1.1 times less               (word:1.3)   1.3 times; (word:0.5), half
        \( \) \[ \] \\  the signs themselves         BREAK        goes on in CLIP's next 77 tokens

    Tokens are those of the prompt without the signs, so that a weight of 1 changes nothing. CLIP reads what is longer
    than 75 tokens in further rows of 77, each with its start and end token, and their features follow one another
    on the token axis; the pooled vector is that of the first row. T5 reads up to ``max_sequence_length`` tokens in one.

    Args:
        method: what a weight w does to a token's features f. "empty" (default; ComfyUI's way): ``e + w (f - e)``,
            with e what the tower makes of the empty prompt there. "mean" (AUTOMATIC1111's): ``w f``, scaled back to the
            mean that the prompt's features had. Both leave pooled vectors alone.
    """

    @checks_arguments
    def __init__(self, method: Literal["empty", "mean"] = "empty"):
        self.method = method

    def read(
        self, name: str, tokenizer: Any, prompts: list[str], length: int, reason: str, in_chunks: bool
    ) -> PromptTokens:
        """See :meth:`PromptReader.read`."""
        require_own("A prompt with weights", tokenizer, name)
        if not hasattr(tokenizer, "spans"):
            raise InputError(
                f"`{name}` is a {type(tokenizer).__name__}, which does not say where its tokens are in the text. Use "
                "one of ppsd3's tokenizers, or prompts without weights (pipe.prompt_reader = PromptReader())."
            )
        room = length - 1 - tokenizer.starts_with_bos
        texts = [_chunks(tokenizer, parse_weights(prompt), room, in_chunks) for prompt in prompts]
        count = max(len(chunks) for chunks, _ in texts) if in_chunks else 1
        empty, _ = _row(tokenizer, [], length)
        ids = np.tile(empty, (len(prompts), count, 1))
        weights = np.ones(ids.shape, np.float32)
        for i, (chunks, removed) in enumerate(texts):
            if removed:
                _warn_of_cut(name, reason, removed)
            for j, chunk in enumerate(chunks):
                ids[i, j], weights[i, j] = _row(tokenizer, chunk, length)
        return PromptTokens(ids, weights if (weights != 1).any() else None, empty)

    def emphasize(self, features: paddle.Tensor, empty: paddle.Tensor, weights: paddle.Tensor) -> paddle.Tensor:
        """See :meth:`PromptReader.emphasize`."""
        if self.method == "empty":
            return empty + weights * (features - empty)
        weighted = features * weights
        return weighted * (features.mean(axis=[1, 2], keepdim=True) / weighted.mean(axis=[1, 2], keepdim=True))


_SIGN = re.compile(r"\\[()\[\]\\]|:\s*([-+]?[\d.]+)\s*\)|[()\[\]]|\bBREAK\b")
_SPACE = re.compile(r"\s*")
_STEP = 1.1
_DEEPEST = 50  # brackets in brackets: 1.1 ** 50 is 117. Each closing bracket weighs all that is in it anew
_HEAVIEST = 10_000.0


def parse_weights(prompt: str) -> list[list[tuple[str, float]]]:
    """A prompt with weights -> list of sections between BREAKs, each a list of (text, weight).

    As in the web UI, a sign that closes nothing is text, and one that is never closed acts to the end.

    Raises:
        InputError: a weight is no number or above 10,000, or more than 50 brackets are open at once.
    """
    sections, parts, opened, position = [], [], [], 0

    def close(start, factor):
        for part in parts[start:]:
            part[1] *= factor

    for match in _SIGN.finditer(prompt):
        sign, number = match.group(), match.group(1)
        text, position = prompt[position : match.start()], match.end()
        parts.append([text, 1.0])
        kinds = [kind for kind, _ in opened]
        if sign in ("(", "["):
            if len(opened) == _DEEPEST:
                raise InputError(
                    f"The prompt {shown(prompt)} has more than {_DEEPEST} brackets open at once. Write a weight as a "
                    "number, e.g. (word:1.3), or \\( and \\[ for brackets that are text."
                )
            opened.append((sign, len(parts)))
        elif sign.startswith("\\"):
            parts.append([sign[1], 1.0])
        elif sign == "BREAK":
            parts[-1][0] = text.rstrip()
            position = _SPACE.match(prompt, position).end()  # type: ignore[union-attr] (it matches nothing too)
            parts.append([None, 1.0])
        elif sign == "]" and "[" in kinds:
            close(_pop(opened, "["), 1 / _STEP)
        elif sign != "]" and "(" in kinds:
            close(_pop(opened, "("), _STEP if number is None else _number(number, sign, prompt))
        else:
            parts.append([sign, 1.0])
    parts.append([prompt[position:], 1.0])
    for kind, start in opened:
        close(start, _STEP if kind == "(" else 1 / _STEP)

    sections = [[]]
    for text, weight in parts:
        if text is None:
            sections.append([])
        elif text:
            if abs(weight) > _HEAVIEST:
                raise InputError(f"The prompt {shown(prompt)} weighs {shown(text)} by {weight:g}. Write at most 10000.")
            sections[-1].append((text, weight))
    return sections


def _pop(opened, kind):
    """Takes the last of ``kind`` off ``opened``; returns where it was."""
    index = max(i for i, (other, _) in enumerate(opened) if other == kind)
    return opened.pop(index)[1]


def _number(text, sign, prompt):
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"The weight in {shown(sign)} of the prompt {shown(prompt)} is no number. Write e.g. (word:1.3), or \\( "
            "and \\) for brackets that are text."
        ) from None


def _chunks(tokenizer, sections, room, in_chunks):
    """(chunks, removed): lists of (id, weight), at most ``room`` each, at least one; and the text that had no place."""
    if not in_chunks:
        sections = [[part for i, section in enumerate(sections) for part in ([(" ", 1.0)] if i else []) + section]]
    chunks, removed = [], None
    for section in sections:
        text = "".join(part for part, _ in section)
        weights = np.repeat([weight for _, weight in section], [len(part) for part, _ in section])
        # A token may begin with the space before it, but it ends in the word that it is of.
        tokens = [(token, float(weights[max(start, end - 1)]), start) for token, start, end in tokenizer.spans(text)]
        if not in_chunks and len(tokens) > room:
            removed, tokens = text[tokens[room][2] :], tokens[:room]
        pairs = [(token, weight) for token, weight, _ in tokens]
        chunks += [pairs[i : i + room] for i in range(0, max(len(pairs), 1), room)]
    return chunks, removed


def _row(tokenizer, tokens, length):
    """(ids [length], weights [length]) of one row: start, tokens, end, padding."""
    start = [tokenizer.bos_token_id] * tokenizer.starts_with_bos
    ids = np.full(length, tokenizer.pad_token_id, np.int64)
    weights = np.ones(length, np.float32)
    row = [*start, *(token for token, _ in tokens), tokenizer.eos_token_id]
    ids[: len(row)] = row
    weights[len(start) : len(start) + len(tokens)] = [weight for _, weight in tokens]
    return ids, weights


def _cut_off(tokenizer, prompts, length):
    """Of each prompt, the end that a tokenizer of another library cuts off, in the words of its tokens."""
    if not hasattr(tokenizer, "decode"):
        return []
    rows = tokenizer(prompts, padding=False, truncation=False).input_ids
    # The last id of a row is the end token, which is kept.
    return [tokenizer.decode(row[length - 1 : -1], skip_special_tokens=True) for row in rows if len(row) > length]


def _warn_of_cut(name, reason, removed):
    logger.warning("%s cut the end off a prompt, because %s: %r was removed.", name, reason, removed)
