"""Training task of the bundled model's text towers: a small reader must recover what a caption states.

The transformer will attend to a tower's tokens and is modulated by its pooled vector; each gets its own reader. A
reader can only answer "how many red circles?" by one attention if the tower has already bound
the colour to the shape, so the towers learn to bind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ..ops import Linear
from ..transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer
from .scene import BACKGROUNDS, COLORS, MAX_OBJECTS, RELATIONS, SHAPES, SIZES, Statement
from .wording import phrase, state
from .world import sample_scene

_COLORS, _SIZES, _BACKGROUNDS = (None, *COLORS), (None, *SIZES), (None, *BACKGROUNDS)
_SLOTS = [(color, shape) for color in _COLORS for shape in SHAPES]  # colour may be unsaid
_ROLES = (None, *RELATIONS)  # a slot's relation to the other one
# What is asked of each slot (count, size, relation), and of the caption (background).
_QUESTIONS = (MAX_OBJECTS + 1, len(_SIZES), len(_ROLES))


def answers(statement: Statement) -> tuple[np.ndarray, int]:
    """Correct answers for the slots, int64 [40, 3], and for the background."""
    slots = np.zeros((len(_SLOTS), len(_QUESTIONS)), np.int64)
    for position, group in enumerate(statement.groups):
        slot = slots[_SLOTS.index((group.color, group.shape))]
        slot[0] += group.count
        slot[1] = _SIZES.index(group.size)
        if statement.relation is not None and position == 0:
            slot[2] = _ROLES.index(statement.relation)
    return np.minimum(slots, np.array(_QUESTIONS) - 1), _BACKGROUNDS.index(statement.background)


class TokenReader(nn.Layer):
    """Reads slots from tokens ``[B, L, D]`` by one attention with learned queries."""

    def __init__(self, width: int, inner: int = 64) -> None:
        super().__init__()
        self.queries: paddle.Tensor = self.create_parameter(
            [len(_SLOTS) + 1, inner], default_initializer=nn.initializer.Normal(0, 1)
        )
        self.key: Linear = Linear(width, inner)
        self.value: Linear = Linear(width, inner)
        self.head: nn.Sequential = nn.Sequential(Linear(inner, inner), nn.GELU(), Linear(inner, sum(_QUESTIONS)))
        self.background: Linear = Linear(inner, len(_BACKGROUNDS))

    def forward(self, tokens: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        scores = paddle.matmul(self.queries * self.queries.shape[-1] ** -0.5, self.key(tokens), transpose_y=True)
        found = self.queries + paddle.matmul(F.softmax(scores, axis=-1), self.value(tokens))  # [B, slots + 1, inner]
        return self.head(found[:, :-1]), self.background(found[:, -1])


class PooledReader(nn.Layer):
    """Reads slots from a pooled vector ``[B, P]``."""

    def __init__(self, width: int, inner: int = 256) -> None:
        super().__init__()
        self.body: nn.Sequential = nn.Sequential(Linear(width, inner), nn.GELU())
        self.head: Linear = Linear(inner, len(_SLOTS) * sum(_QUESTIONS))
        self.background: Linear = Linear(inner, len(_BACKGROUNDS))

    def forward(self, pooled: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        found = self.body(pooled)
        return self.head(found).reshape([-1, len(_SLOTS), sum(_QUESTIONS)]), self.background(found)


class CaptionReadingTask:
    """Trains the towers and their readers together.

    Args:
        batch: captions per step.
        t5_lengths: lengths to which T5's ids are padded, so that it learns to read any number of pads.
    """

    def __init__(
        self,
        clips: Sequence[tuple[CLIPTextModelWithProjection, CLIPTokenizer]],
        t5: T5EncoderModel,
        t5_tokenizer: T5Tokenizer,
        batch: int = 64,
        t5_lengths: Sequence[int] = (20, 24, 32, 77, 256),
    ) -> None:
        self.clips: Sequence[tuple[CLIPTextModelWithProjection, CLIPTokenizer]] = clips
        self.t5: T5EncoderModel = t5
        self.t5_tokenizer: T5Tokenizer = t5_tokenizer
        self.batch: int = batch
        self.t5_lengths: Sequence[int] = t5_lengths
        odds = np.array([1 / length for length in t5_lengths])  # equal work for each length
        self.length_odds: np.ndarray = odds / odds.sum()
        self.layers: dict[str, nn.Layer] = {"t5": t5, "t5_reader": TokenReader(t5.config.d_model)}
        for i, (clip, _) in enumerate(clips, 1):
            self.layers[f"clip_{i}"] = clip
            self.layers[f"clip_{i}_reader"] = TokenReader(clip.config.hidden_size)
            self.layers[f"clip_{i}_pooled_reader"] = PooledReader(clip.config.projection_dim)

    @property
    def configuration(self) -> dict[str, Any]:
        """What a resumed run must share."""
        return {"batch": self.batch}

    def loss(self, rng: np.random.Generator, batch: int) -> tuple[paddle.Tensor, dict[str, Any]]:
        """Mean cross entropy of all readers' answers."""
        statements = [state(sample_scene(rng), rng) for _ in range(self.batch)]
        texts = [phrase(statement, rng) for statement in statements]
        slots, backgrounds = zip(*map(answers, statements))
        truth = paddle.to_tensor(np.stack(slots)), paddle.to_tensor(np.array(backgrounds))
        readings = []
        padding = "max_length" if rng.random() < 0.25 else "longest"
        for i, (clip, tokenizer) in enumerate(self.clips, 1):
            output = clip(paddle.to_tensor(tokenizer(texts, padding=padding).input_ids), output_hidden_states=True)
            readings.append(self.layers[f"clip_{i}_reader"](output.hidden_states[-2]))  # the layer that SD3 reads
            readings.append(self.layers[f"clip_{i}_pooled_reader"](output.text_embeds))
        length = int(rng.choice(self.t5_lengths, p=self.length_odds))
        ids = self.t5_tokenizer(texts, max_length=length).input_ids
        readings.append(self.layers["t5_reader"](self.t5(paddle.to_tensor(ids)).last_hidden_state))
        grades = [_grade(reading, truth) for reading in readings]
        losses = [loss for loss, _ in grades]
        names = [f"{kind}_{i}" for i in range(1, len(self.clips) + 1) for kind in ("clip", "pooled")] + ["t5"]
        return sum(losses[1:], losses[0]), {f"right_{name}": right for name, (_, right) in zip(names, grades)}


def _grade(reading: Any, truth: Any) -> tuple[paddle.Tensor, float]:
    """Cross entropy of one reading, and the share of captions that it read without error."""
    (logits, background), (slots, true_background) = reading, truth
    loss = F.cross_entropy(background, true_background)
    right = (background.argmax(-1) == true_background).numpy()
    for question, logit in enumerate(logits.split(list(_QUESTIONS), axis=-1)):
        loss = loss + F.cross_entropy(logit, slots[:, :, question]) * 4.0  # most slots are empty, thus easy
        right = right & (logit.argmax(-1) == slots[:, :, question]).all(-1).numpy()
    return loss, float(right.mean())
