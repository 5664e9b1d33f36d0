"""CLIP's text tower with its projection (Radford et al. 2021): causal, pre-norm, pooled at the end-of-text token.

Counterpart of transformers' ``CLIPTextModelWithProjection``. SD3 reads two of them: CLIP-L (quick_gelu) and
OpenCLIP bigG (gelu).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ...configuration_utils import register_to_config
from ...modeling_utils import to_be_filled
from ...ops import AffineLayerNorm, Linear, attention, causal_bias
from ...ops.shapes import sizes_of
from ...outputs import BaseOutput
from ...serialization.tensors import cast, from_numpy, put
from ...utils.config_types import Epsilon, Heads, Layers, NotNegative, Positions, Share, TokenId, VocabularySize, Width
from ...utils.errors import ConfigError, InputError
from ...utils.paddle_internals import copy_to, no_grad, set_num_embeddings
from ...utils.threads import changes_networks
from ..encoder import PreNormLayer, activation, init_normal
from ..text_encoder import TextEncoder

_LEGACY_EOS_TOKEN_ID = 2


@dataclasses.dataclass
class CLIPTextModelOutput(BaseOutput):
    """What the tower gives for ``B`` prompts of ``L`` tokens.

    Attributes:
        text_embeds: [B, projection_dim], the pooled and projected text.
        last_hidden_state: [B, L, hidden_size], after ``final_layer_norm``.
        hidden_states: [B, L, hidden_size], the embeddings, then the output of each layer,
            none of them after ``final_layer_norm``. SD3 uses ``hidden_states[-(clip_skip + 2)]``.
    """

    text_embeds: Any
    last_hidden_state: Any = None
    hidden_states: tuple | None = None


class CLIPTextModelWithProjection(TextEncoder):
    """Token ids to a pooled vector and hidden states.

    Args:
        vocab_size: rows of the token embedding.
        hidden_size: width D. CLIP-L 768, bigG 1280.
        intermediate_size: width of the MLP.
        projection_dim: width of ``text_embeds``.
        num_hidden_layers: default 12.
        num_attention_heads: heads h; divides ``hidden_size``.
        max_position_embeddings: longest sequence.
        hidden_act: ``"quick_gelu"`` (CLIP-L, the default), ``"gelu"`` (bigG), ...
        layer_norm_eps: default 1e-5.
        attention_dropout: must be 0 in training mode.
        initializer_factor: scales the initial weights.
        initializer_range, pad_token_id, bos_token_id: kept for transformers; no effect here or
            there.
        eos_token_id: where the text is pooled: at its first occurrence. 2, which old published configurations
            hold by mistake, means at the first occurrence of the row's largest id. Default 49407.

    Raises:
        ConfigError: heads do not divide the width, or ``hidden_act`` is unknown.
    """

    extra_saved_config = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
    ignored_config_keys = (*TextEncoder.ignored_config_keys, "dropout", "gradient_checkpointing")
    # A buffer 0..76 in files written by transformers before 4.31.
    _keys_to_ignore_on_load = (r"^text_model\.embeddings\.position_ids$",)
    _components = ("text_encoder", "text_encoder_2")

    @register_to_config
    def __init__(
        self,
        vocab_size: VocabularySize = 49408,
        hidden_size: Width = 512,
        intermediate_size: Width = 2048,
        projection_dim: Width = 512,
        num_hidden_layers: Layers = 12,
        num_attention_heads: Heads = 8,
        max_position_embeddings: Positions = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: Epsilon = 1e-05,
        attention_dropout: Share = 0.0,
        initializer_range: NotNegative = 0.02,
        initializer_factor: NotNegative = 1.0,
        pad_token_id: TokenId | None = 1,
        bos_token_id: TokenId | None = 49406,
        eos_token_id: TokenId = 49407,
    ) -> None:
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ConfigError(
                f"num_attention_heads ({num_attention_heads}) does not divide hidden_size ({hidden_size})."
            )
        self.text_model = _TextTransformer(self.config)
        self.text_projection = Linear(hidden_size, projection_dim, bias=False)
        init_normal(self.text_projection.weight, initializer_factor * hidden_size**-0.5)

    def get_input_embeddings(self) -> nn.Embedding:
        """The layer that holds the embeddings of the tokens: ``weight [vocab_size, hidden_size]``."""
        return self.text_model.embeddings.token_embedding

    @changes_networks
    @no_grad
    def set_added_embeddings(self, rows: np.ndarray, first: int, eos_token_id: int) -> None:
        """Makes ``rows`` the embeddings of the ids from ``first`` on, whatever was there before.

        Args:
            rows: [n, hidden_size], may be empty.
            first: how many ids stay as they are.
            eos_token_id: of the end-of-text token. A configuration that says 2 means a row's largest id, which
                the id of an added token would be, so this takes its place there.
        """
        layer = self.get_input_embeddings()
        weight = layer.weight
        rows = cast(from_numpy(np.ascontiguousarray(rows, np.float32)), weight.dtype).numpy()
        table = from_numpy(np.concatenate([weight.numpy()[:first], rows]))
        set_num_embeddings(layer, first + len(rows))
        with to_be_filled():
            layer.weight = layer.create_parameter(table.shape, dtype=weight.dtype)
        layer.weight.stop_gradient = weight.stop_gradient
        put(layer.weight, table if weight.place.is_cpu_place() else copy_to(table, weight.place))
        known = {"eos_token_id": eos_token_id} if self.config.eos_token_id == _LEGACY_EOS_TOKEN_ID else {}
        self.register_to_config(vocab_size=first + len(rows), **known)

    def forward(
        self, input_ids: Any, output_hidden_states: bool = False, attention_mask: Any = None
    ) -> CLIPTextModelOutput:
        """Encodes a batch of prompts.

        Args:
            input_ids: [B, L], with start and end tokens, as ``CLIPTokenizer`` gives them.
            output_hidden_states: whether to return ``hidden_states``.
            attention_mask: None or all ones: Stable Diffusion 3 was trained with the padding in sight.

        Returns:
            CLIPTextModelOutput

        Raises:
            InputError: a mask that hides something, ids outside the vocabulary, or more of them than positions.
        """
        if attention_mask is not None:
            _refuse_hiding(attention_mask)
        ids = self._token_ids(input_ids)
        if ids.shape[1] > self.config.max_position_embeddings:
            raise InputError(
                f"input_ids has {ids.shape[1]} tokens, but this text encoder has {self.config.max_position_embeddings} "
                f"positions; tokenize with max_length={self.config.max_position_embeddings}, truncation=True."
            )
        if self.training and self.config.attention_dropout > 0:
            raise InputError(
                f"attention_dropout={self.config.attention_dropout} is not supported in training; load the tower with "
                "attention_dropout=0, or call eval()."
            )
        hidden = self.text_model.embeddings(ids)
        bias = causal_bias(ids.shape[1], ids.shape[1], hidden.dtype).unsqueeze([0, 1])  # [1, 1, L, L]
        states = self._run_blocks(self.text_model.encoder.layers, hidden, bias)
        last = self.text_model.final_layer_norm(states[-1])
        pooled = _rows_at(last, _end_of_text(ids, self.config.eos_token_id))
        return CLIPTextModelOutput(self.text_projection(pooled), last, tuple(states) if output_hidden_states else None)


def _end_of_text(ids, eos_token_id):
    """Position [B] of each row's end-of-text token; 0 where there is none, as in transformers."""
    is_end = ids == (ids.max(axis=-1, keepdim=True) if eos_token_id == _LEGACY_EOS_TOKEN_ID else eos_token_id)
    # CLIP-L pads with the end token, so several positions match; weights that fall from left to right make the first
    # one the only maximum, whatever a device's argmax does with ties.
    return (is_end.astype("int64") * paddle.arange(ids.shape[1], 0, -1)).argmax(axis=-1)


def _rows_at(x, positions):
    """``x [B, L, D]``, ``positions [B]`` -> ``[B, D]``."""
    return paddle.gather_nd(x, paddle.stack([paddle.arange(sizes_of(x)[0]), positions], axis=-1))


class _TextTransformer(nn.Layer):
    """Holds the parts under the names of the checkpoint; the model above runs them."""

    def __init__(self, config):
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = nn.Layer()
        self.encoder.layers = nn.LayerList(
            [PreNormLayer(config, _Attention, _MLP) for _ in range(config.num_hidden_layers)]
        )
        self.final_layer_norm = AffineLayerNorm(config.hidden_size, config.layer_norm_eps)


class _Embeddings(nn.Layer):
    """Token plus learnt position: ``[B, L]`` -> ``[B, L, D]``."""

    def __init__(self, config):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        for table in (self.token_embedding, self.position_embedding):
            init_normal(table.weight, config.initializer_factor * 0.02)

    def forward(self, ids):
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class _Attention(nn.Layer):
    """Multi-head self-attention; ``bias [1, 1, L, L]`` hides the future."""

    def __init__(self, config):
        super().__init__()
        width, depth = config.hidden_size, config.num_hidden_layers
        self.heads = config.num_attention_heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, Linear(width, width))
            std = width**-0.5 * (1.0 if name == "out_proj" else (2 * depth) ** -0.5)
            _init_linear(getattr(self, name), config.initializer_factor * std)

    def forward(self, x, bias):
        batch, length, width = x.shape
        q, k, v = (
            projection(x).reshape([batch, length, self.heads, width // self.heads])  # [B, L, h, d]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attention(q, k, v, bias=bias).reshape([batch, length, width]))


class _MLP(nn.Layer):
    def __init__(self, config):
        super().__init__()
        width, depth, factor = config.hidden_size, config.num_hidden_layers, config.initializer_factor
        self.activation = activation(config.hidden_act, "hidden_act")
        self.fc1 = Linear(width, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, width)
        _init_linear(self.fc1, factor * (2 * width) ** -0.5)
        _init_linear(self.fc2, factor * (2 * depth * width) ** -0.5)

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


def _refuse_hiding(attention_mask):
    if not np.asarray(attention_mask).all():
        raise InputError(
            "attention_mask hides tokens. Stable Diffusion 3 was trained with the padding in sight: leave it out."
        )


def _init_linear(linear, std):
    init_normal(linear.weight, std)
    nn.initializer.Constant(0.0)(linear.bias)
