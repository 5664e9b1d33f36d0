"""Textual inversion: the embeddings of one new word are trained, and nothing else (Gal et al. 2022)."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ..loaders.textual_inversion import KEYS, TOKENIZERS
from ..utils.checking import checks_arguments
from ..utils.errors import InputError
from ..utils.paddle_internals import no_grad


class LearntEmbedding(nn.Layer):
    """An embedding table whose last rows are trained.

    They are a parameter of their own, so that no optimizer, decay or rounding touches the other rows.

    Args:
        table: of a text encoder, ``weight [V, D]``; frozen.
        count: of rows at its end that are trained, from their present values.

    Shapes: ``ids [B, L]`` -> ``[B, L, D]``.
    """

    def __init__(self, table: nn.Layer, count: int) -> None:
        super().__init__()
        weight: Any = table.weight
        weight.stop_gradient = True
        self.first: int = weight.shape[0] - count
        self.table = table
        zeros = nn.initializer.Constant(0.0)
        self.learnt: paddle.Tensor = self.create_parameter([count, weight.shape[1]], default_initializer=zeros)
        self.learnt.set_value(weight[self.first :].astype("float32"))

    @property
    def weight(self) -> paddle.Tensor:
        """The whole table [V, D] with the rows as they are now, in the table's dtype."""
        frozen: Any = self.table.weight
        return paddle.concat([frozen[: self.first], self.learnt.astype(frozen.dtype)])

    def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
        is_learnt, frozen = ids >= self.first, self.table(ids)
        rows = F.embedding(paddle.where(is_learnt, ids - self.first, paddle.zeros_like(ids)), self.learnt)
        return paddle.where(is_learnt.unsqueeze(-1), rows.astype(frozen.dtype), frozen)


@checks_arguments
def train_word(
    pipe: Any, token: str, vectors: int = 1, initial_word: str | None = None, text_encoders: list[str] | None = None
) -> None:
    """Adds a word to the CLIP text encoders of ``pipe``, and makes its vectors the only trainable numbers of theirs.

    ``pipe.save_textual_inversion`` writes the word as it is at that time.

    Args:
        token: the word, e.g. "<cat>"; prompts contain it once, whatever the number of its vectors.
        vectors: how many tokens it stands for.
        initial_word: a word or several whose tokens' embeddings are the vectors' first values, in turn. Default: random
            ones, of the table's mean and standard deviation.
        text_encoders: of "text_encoder" and "text_encoder_2"; default both.

    Raises:
        InputError: the word exists already or cannot be a token, there is no such encoder, or ``initial_word`` is no
            text.
    """
    for name in text_encoders or TOKENIZERS:
        if getattr(pipe, name, None) is None:
            raise InputError(f"The pipeline has no {name} that could learn {token!r}. Leave it out of text_encoders.")
        rows = _first_rows(getattr(pipe, name), getattr(pipe, TOKENIZERS[name]), vectors, initial_word)
        pipe.load_textual_inversion({KEYS[name]: rows}, token=token, text_encoder=name)
        embeddings = getattr(pipe, name).text_model.embeddings
        embeddings.token_embedding = LearntEmbedding(embeddings.token_embedding, vectors)


@no_grad
def _first_rows(encoder, tokenizer, count, word):
    """float32 [count, D]"""
    table = encoder.get_input_embeddings().weight
    if word is None:
        weight = table.astype("float32")
        mean, std = weight.mean(axis=0), weight.std(axis=0)
        return mean + std * paddle.randn([count, table.shape[1]])
    ids = tokenizer.encode(word, add_special_tokens=False)
    if not ids:
        raise InputError(f"initial_word is {word!r}, which has no tokens. Name a word, or leave it out.")
    return table[paddle.to_tensor(np.resize(ids, count))].astype("float32")
