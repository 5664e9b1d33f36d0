"""The prompts of a call: their checks, and what each text encoder reads."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from typing import Any

from ...utils.errors import InputError
from ...utils.logging import get_logger
from .arguments import CallArguments, NegativePrompts, PromptEmbeds, Prompts, Tensor

logger = get_logger(__name__)

_TEXTS = ("prompt", "prompt_2", "prompt_3")
_SIGNS = ("", "negative_")
_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")  # each reads the text of its place
_HALF = re.compile("[\ud800-\udfff]")  # of a character of two 16-bit numbers; UTF-8 has no place for it
MOST_CHARACTERS = 100_000  # the encoders read some hundred words


@dataclasses.dataclass
class PromptInputs(PromptEmbeds, NegativePrompts, Prompts):
    """The prompts of a call: texts, or the tensors that ``encode_prompt`` returns.

    ``prompt_2`` and ``prompt_3`` fall back on ``prompt`` if None or "", the negative ones on ``negative_prompt``, which
    falls back on "". One negative text serves the whole batch.
    """

    @classmethod
    def of(cls, arguments: CallArguments) -> PromptInputs:
        """The prompts among the arguments of a call."""
        return cls(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)})

    @property
    def batch(self) -> int:
        """Number of prompts B."""
        if self.prompt is None:
            return 1 if self.prompt_embeds is None else int(self.prompt_embeds.shape[0])
        return 1 if isinstance(self.prompt, str) else len(self.prompt)

    def texts(self, sign: str = "") -> tuple[list[str], list[str], list[str]]:
        """The three texts; ``sign`` is ``""`` or ``"negative_"``. Each a list of B str."""
        first, second, third = (getattr(self, sign + name) for name in _TEXTS)
        first = first or ""
        first, second, third = (
            [t] * self.batch if isinstance(t, str) else t for t in (first, second or first, third or first)
        )
        return first, second, third

    def embeds(self, sign: str = "") -> tuple[Tensor, Tensor]:
        """``(embeds [B, L, D], pooled [B, P])``, or ``(None, None)``."""
        return getattr(self, sign + "prompt_embeds"), getattr(self, sign + "pooled_prompt_embeds")

    def check(self, encoders: Any) -> PromptInputs:
        """Texts or tensors, not both; lists as long as one another; tensors of matching shapes; texts that somebody
        reads. Returns self.

        Args:
            encoders: whose attributes the text encoders are: the pipeline.
        """
        for sign in _SIGNS:
            for name in (sign + name for name in _TEXTS):
                text = getattr(self, name)
                if text is not None and self.embeds(sign)[0] is not None:
                    raise InputError(f"Both `{name}` and `{sign}prompt_embeds` are given. Pass one of the two.")
                _check_text(name, text)
            if any(part is not None for part in self.embeds(sign)):
                _check_embeds(sign, *self.embeds(sign))
        if self.prompt is None and self.prompt_embeds is None:
            raise InputError("Neither `prompt` nor `prompt_embeds` is given. Pass one of the two.")
        self._check_counts()
        if self.prompt_embeds is not None:
            self._check_signs_agree()
        for sign in _SIGNS:
            self._check_read(sign, [getattr(encoders, name) is not None for name in _ENCODERS])
        return self

    def _check_read(self, sign, there):
        if any(any(row) and not any(itertools.compress(row, there)) for row in zip(*self.texts(sign))):
            raise _unread(sign)
        if not all(there):
            self._warn_of_unread(sign, there)

    def _warn_of_unread(self, sign, there):
        for name, encoder, is_there in zip(_TEXTS[1:], _ENCODERS[1:], there[1:]):
            if getattr(self, sign + name) and not is_there:
                _warn_once(f"`{sign}{name}` changes nothing, because the pipeline has no `{encoder}`.")

    def _check_counts(self):
        for name in (sign + name for sign in _SIGNS for name in _TEXTS):
            text = getattr(self, name)
            if not text or (isinstance(text, str) and name.startswith("negative_")):
                continue
            count = 1 if isinstance(text, str) else len(text)
            if count != self.batch:
                raise InputError(
                    f"`{name}` holds {count} texts, but there are {self.batch} prompts. Pass {self.batch}, or leave "
                    f"`{name}` out."
                )

    def _check_signs_agree(self):
        for name in ("prompt_embeds", "pooled_prompt_embeds"):
            positive, negative = getattr(self, name), getattr(self, "negative_" + name)
            if positive is not None and negative is not None and list(positive.shape) != list(negative.shape):
                raise InputError(
                    f"`{name}` has the shape {list(positive.shape)} and `negative_{name}` {list(negative.shape)}. They "
                    "have to be equal: encode both with the same max_sequence_length and as many prompts."
                )


def _check_text(name, text):
    texts = [text] if isinstance(text, str) else text
    if texts is not None and not (texts and all(map(_is_readable, texts))):
        raise _unusable(name, texts)


def _is_readable(text):
    return len(text) <= MOST_CHARACTERS and _HALF.search(text) is None


def _unusable(name, texts):
    text = next((text for text in texts if not _is_readable(text)), None)
    if text is None:
        return InputError(f"`{name}` is an empty list. Pass at least one text.")
    if len(text) > MOST_CHARACTERS:
        return InputError(
            f"`{name}` has {len(text):,} characters, of which the text encoders read a few thousand. Pass at most "
            f"{MOST_CHARACTERS:,}."
        )
    half = _HALF.search(text)
    return InputError(
        f"`{name}` holds {half and half.group()!r}, half of a character. Read the text as UTF-8, with errors='replace'."
    )


def _unread(sign):
    return InputError(
        f"`{sign}prompt` has a text, and the pipeline no text encoder that reads it: every text would give the same "
        f"picture. Load {', '.join(_ENCODERS)} or one of them, pass `{sign}prompt_embeds` and "
        f'`{sign}pooled_prompt_embeds`, or {sign}prompt="" to draw without a text.'
    )


@functools.cache
def _warn_once(text):
    logger.warning(text)


def _check_embeds(sign, embeds, pooled):
    if embeds is None or pooled is None:
        given, missing = ("prompt_embeds", "pooled_prompt_embeds")[:: 1 if pooled is None else -1]
        raise InputError(
            f"`{sign}{given}` comes without `{sign}{missing}`. Pass both, as `encode_prompt` returns them."
        )
    if len(embeds.shape) != 3 or len(pooled.shape) != 2 or embeds.shape[0] != pooled.shape[0] or embeds.shape[0] < 1:
        raise InputError(
            f"`{sign}prompt_embeds` has the shape {list(embeds.shape)} and `{sign}pooled_prompt_embeds` "
            f"{list(pooled.shape)}; they have to be [B, L, D] and [B, P] of the same B >= 1."
        )
