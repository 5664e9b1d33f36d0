"""Captions to text conditions in training: by towers, or as they were once encoded; with dropout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Protocol

import numpy as np
import paddle

from ..pipelines.stable_diffusion_3.prompt_cache import reading_of
from ..pipelines.stable_diffusion_3.prompt_encoding import Request, TextCondition, TextEncoders, encode_prompts
from ..utils.checking import Range, checks_arguments
from ..utils.paddle_internals import no_grad
from .caches import TensorCache

TOWERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@checks_arguments
@dataclasses.dataclass(frozen=True)
class TextDropout:
    """Probabilities of text dropout.

    Attributes:
        encoder: that an encoder's output is replaced by zeros, independently for each encoder. SD3 was pretrained with
            0.464, so that any subset of encoders works at inference (paper, section 5.1); fine-tuning wants 0.
        caption: that the caption is replaced by "", which pipelines encode as the negative prompt.
    """

    encoder: Annotated[float, Range(0, 1)] = 0.464
    caption: Annotated[float, Range(0, 1)] = 0.0

    def captions(self, prompts: Sequence[str], rng: np.random.Generator) -> list[str]:
        """The prompts, some of them replaced by ""."""
        empty = rng.random(len(prompts)) < self.caption
        return ["" if drop else prompt for prompt, drop in zip(prompts, empty)]

    def kept(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """float32 [count, 3], 1 or 0 for CLIP-L, CLIP-G and T5 of each row."""
        return (rng.random([count, 3]) >= self.encoder).astype(np.float32)


NO_DROPOUT = TextDropout(encoder=0.0)


class Texts(Protocol):
    """Where a task has its text from."""

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Settings, as JSON values, that a resumed run must share."""
        ...

    def condition(
        self, prompts: Sequence[str], rng: np.random.Generator, clip_length: int, t5_length: int
    ) -> TextCondition:
        """The condition of the prompts, B rows, padded to so many tokens, with dropout."""
        ...


class EncodedTexts:
    """Text by frozen towers, each batch anew.

    Args:
        encoders: towers and their tokenizers.
        dropout: of captions and encoders.
    """

    def __init__(self, encoders: TextEncoders, dropout: TextDropout = NO_DROPOUT) -> None:
        self.encoders: TextEncoders = encoders
        self.dropout: TextDropout = dropout

    @property
    def configuration(self) -> Mapping[str, Any]:
        return {"dropout": repr(self.dropout)}

    @no_grad
    def condition(
        self, prompts: Sequence[str], rng: np.random.Generator, clip_length: int, t5_length: int
    ) -> TextCondition:
        condition = encode(self.encoders, self.dropout.captions(prompts, rng), clip_length, t5_length)
        return drop_encoders(condition, self.dropout.kept(len(prompts), rng), self.encoders, clip_length)


class CachedTexts(EncodedTexts):
    """Text by frozen towers that read each caption once, and are then let go.

    Towers that are trained (``trained``) stay, and are asked each time, with gradients; what the others say is cached.

    Args:
        directory: of the cache; None keeps it in memory.
        trained: names of towers, of "text_encoder" and "text_encoder_2".
    """

    def __init__(
        self,
        encoders: TextEncoders,
        dropout: TextDropout = NO_DROPOUT,
        directory: str | None = None,
        trained: Iterable[str] = (),
    ) -> None:
        trained = set(trained)
        live, frozen = ({name: None for name in TOWERS if (name in trained) is drop} for drop in (False, True))
        super().__init__(dataclasses.replace(encoders, **live), dropout)
        asked = dataclasses.replace(encoders, **frozen)
        self._frozen: TextEncoders | None = asked
        self._any_live = bool(trained)
        self._cache = TensorCache(directory, reading_of(asked))
        self._widths = _widths(encoders)

    def prepare(self, captions: Iterable[str], clip_length: int, t5_length: int) -> None:
        """Encodes what will be read, "" included, and lets the frozen towers go."""
        for caption in sorted({"", *captions}):
            self._row(caption, clip_length, t5_length)
        self._frozen = None

    def condition(
        self, prompts: Sequence[str], rng: np.random.Generator, clip_length: int, t5_length: int
    ) -> TextCondition:
        condition = self.plain(self.dropout.captions(prompts, rng), clip_length, t5_length)
        return _masked(condition, self.dropout.kept(len(prompts), rng), self._widths, clip_length)

    def plain(self, prompts: Sequence[str], clip_length: int, t5_length: int) -> TextCondition:
        """The condition of the prompts without dropout."""
        condition = TextCondition.cat([self._row(prompt, clip_length, t5_length) for prompt in prompts])
        if self._any_live:  # an absent tower contributes zeros, so the parts add up
            live = encode(self.encoders, prompts, clip_length, t5_length)
            condition = TextCondition(condition.embeds + live.embeds, condition.pooled + live.pooled)
        return condition

    @no_grad
    def _row(self, prompt, clip_length, t5_length):
        def make():
            assert self._frozen is not None, f"{prompt!r} was not prepared"
            return vars(encode(self._frozen, [prompt], clip_length, t5_length))

        found = self._cache.get(f"{clip_length} {t5_length} {prompt}", make)
        return TextCondition(found["embeds"], found["pooled"])


def encode(encoders: TextEncoders, prompts: Sequence[str], clip_length: int, t5_length: int) -> TextCondition:
    """The condition of prompts, the same text for each tower, padded to so many tokens."""
    encoders = dataclasses.replace(encoders, clip_max_length=clip_length)
    texts = list(prompts)
    return encode_prompts(encoders, [Request(texts, texts, texts)], t5_length)[0]


def drop_encoders(
    condition: TextCondition, keep: np.ndarray, encoders: TextEncoders, clip_length: int
) -> TextCondition:
    """Replaces encoders' outputs by zeros, as the pipeline does for an absent encoder.

    Args:
        condition: of B rows.
        keep [B, 3]: 1 or 0 for CLIP-L, CLIP-G and T5.
        encoders: for the widths.
        clip_length: number of CLIP tokens, which come before T5's.
    """
    return _masked(condition, keep, _widths(encoders), clip_length)


def _widths(encoders):
    """(hidden widths of the CLIP towers and of the padding behind them, widths of their projections)."""
    clips = [tower.config for tower in (encoders.text_encoder, encoders.text_encoder_2) if tower is not None]
    if len(clips) < 2:
        return None  # an absent tower's columns cannot be told apart; nothing can be dropped
    hidden = [c.hidden_size for c in clips]
    return [*hidden, encoders.joint_attention_dim - sum(hidden)], [c.projection_dim for c in clips]


def _masked(condition, keep, widths, clip_length):
    if keep.all():
        return condition
    hidden, projections = widths
    columns = np.repeat(keep[:, [0, 1, 1]], hidden, axis=1)  # the padding is zeros already
    pooled = np.repeat(keep[:, :2], projections, axis=1)
    clip, t5 = condition.embeds[:, :clip_length], condition.embeds[:, clip_length:]
    clip = clip * paddle.to_tensor(columns[:, None])
    t5 = t5 * paddle.to_tensor(keep[:, 2, None, None])
    return TextCondition(paddle.concat([clip, t5], axis=1), condition.pooled * paddle.to_tensor(pooled))
