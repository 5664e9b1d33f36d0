"""T5's encoder (Raffel et al. 2020; v1.1): RMS norm, relative position bias, gated feed-forward.

Counterpart of transformers' ``T5EncoderModel``. SD3 reads T5-v1.1-XXL.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ...configuration_utils import register_to_config
from ...ops import Linear, attention, rms_norm, shared_input
from ...ops.shapes import sizes_of
from ...outputs import BaseOutput
from ...utils.checking import shown
from ...utils.config_types import (
    Buckets,
    Epsilon,
    Heads,
    HeadWidth,
    Layers,
    NotNegative,
    Positions,
    Share,
    TokenId,
    VocabularySize,
    Width,
)
from ...utils.errors import ConfigError, InputError
from ..encoder import activation, init_normal
from ..text_encoder import TextEncoder

# transformers clamps fp16 activations here: the largest fp16 less 1000, so that a later addition stays finite.
_FP16_LIMIT = 64504.0
# Tokens that a static graph whose length is open can take: what T5 was trained on.
_LONGEST_IN_GRAPHS = 512


@dataclasses.dataclass
class T5EncoderOutput(BaseOutput):
    """What the encoder gives for ``B`` prompts of ``L`` tokens.

    Attributes:
        last_hidden_state: [B, L, d_model], after ``final_layer_norm``.
        hidden_states: [B, L, d_model], the embeddings, the output of each block but the
            last, then ``last_hidden_state``.
    """

    last_hidden_state: Any
    hidden_states: tuple | None = None


class T5EncoderModel(TextEncoder):
    """Token ids to one vector per token.

    Args:
        vocab_size: rows of the embedding.
        d_model: width D. XXL 4096.
        d_kv: head width d; h * d need not be D.
        d_ff: width of the feed-forward. XXL 10240.
        num_layers: default 6.
        num_heads: heads h.
        relative_attention_num_buckets, relative_attention_max_distance: the relative position bias tells
            apart this many ranges of distance, the last one open. Defaults 32 and 128.
        dropout_rate: in training mode, on embeddings, residual branches and feed-forward; not on attention
            probabilities, unlike transformers. Default 0.1.
        layer_norm_epsilon: default 1e-6.
        initializer_factor: scales the initial weights.
        feed_forward_proj: activation, ``"gated-"`` before it for two input projections: ``"relu"`` (the
            default), ``"gated-gelu"`` (v1.1, tanh form), ``"gated-silu"``, ...
        pad_token_id, eos_token_id: kept for transformers; the encoder does not use them. Defaults 0 and 1.

    Raises:
        ConfigError: ``feed_forward_proj`` is malformed or its activation unknown.
    """

    extra_saved_config = {"architectures": ["T5EncoderModel"], "model_type": "t5", "is_encoder_decoder": False}
    ignored_config_keys = (
        *TextEncoder.ignored_config_keys,
        *("bos_token_id", "classifier_dropout", "dense_act_fn", "gradient_checkpointing", "is_gated_act"),
        *("n_positions", "num_decoder_layers", "scale_decoder_outputs"),
    )
    # One table under two names: a file holds either or both.
    _tied_keys = {"encoder.embed_tokens.weight": "shared.weight"}
    # A full T5 file holds a decoder too.
    _keys_to_ignore_on_load = (r"^decoder\.", r"^lm_head\.")
    # The output projections of the feed-forward overflow in fp16.
    _keep_in_fp32_modules = ("wo",)
    _quantizable_modules = ("SelfAttention", "DenseReluDense")
    _components = ("text_encoder_3",)

    @register_to_config
    def __init__(
        self,
        vocab_size: VocabularySize = 32128,
        d_model: Width = 512,
        d_kv: HeadWidth = 64,
        d_ff: Width = 2048,
        num_layers: Layers = 6,
        num_heads: Heads = 8,
        relative_attention_num_buckets: Buckets = 32,
        relative_attention_max_distance: Positions = 128,
        dropout_rate: Share = 0.1,
        layer_norm_epsilon: Epsilon = 1e-06,
        initializer_factor: NotNegative = 1.0,
        feed_forward_proj: str = "relu",
        pad_token_id: TokenId | None = 0,
        eos_token_id: TokenId | None = 1,
    ) -> None:
        super().__init__()
        if relative_attention_max_distance <= relative_attention_num_buckets // 4:
            raise ConfigError(
                f"relative_attention_max_distance is {relative_attention_max_distance}; it has to be above a quarter "
                f"of relative_attention_num_buckets ({relative_attention_num_buckets}), which hold one distance each."
            )
        self.shared = nn.Embedding(vocab_size, d_model)
        init_normal(self.shared.weight, initializer_factor)
        self.encoder = nn.Layer()
        self.encoder.block = nn.LayerList([_Block(self.config, index == 0) for index in range(num_layers)])
        self.encoder.final_layer_norm = _RMSNorm(d_model, layer_norm_epsilon)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(
        self, input_ids: Any, attention_mask: Any = None, output_hidden_states: bool = False
    ) -> T5EncoderOutput:
        """Encodes a batch of prompts.

        Args:
            input_ids: [B, L], as ``T5Tokenizer`` gives them. ``L`` has no limit.
            attention_mask: [B, L], 1 = token, 0 = padding that is not attended to. Default
                None: every position is attended to, as SD3 does.
            output_hidden_states: whether to return ``hidden_states``.

        Returns:
            T5EncoderOutput

        Raises:
            InputError: ids outside the vocabulary, or a mask of another shape.
        """
        ids = self._token_ids(input_ids)
        hidden = self.dropout(self.shared(ids))
        bias = self._position_bias(sizes_of(ids)[1])
        if attention_mask is not None:
            bias = bias + _padding_bias(attention_mask, ids, bias.dtype)
        states = self._run_blocks(self.encoder.block, hidden, bias)
        states[-1] = self.dropout(self.encoder.final_layer_norm(states[-1]))
        return T5EncoderOutput(states[-1], tuple(states) if output_hidden_states else None)

    def _position_bias(self, length):
        """``[1, h, L, L]`` for all blocks; its table lives in block 0."""
        config = self.config
        table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, h]
        limits = config.relative_attention_num_buckets, config.relative_attention_max_distance
        if isinstance(length, int):
            buckets = paddle.to_tensor(relative_position_buckets(length, *limits).ravel())
        else:
            buckets = _open_position_buckets(length, *limits)
        # Gathering columns of the transposed table gives [h, L * L] at once; transposing [L, L, h] is slow on CPU.
        bias = paddle.gather(table.t(), buckets, axis=1)
        return bias.reshape([1, config.num_heads, length, length])


@functools.lru_cache(maxsize=8)
def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of every (query, key) pair, for attention in both directions.

    Half of the buckets are for keys after the query. Of each half, the first half are one distance each, the rest
    grow logarithmically up to ``max_distance``; whatever is farther shares the last one.

    Returns:
        ndarray [length, length] of int64: query down, key across.
    """
    position = np.arange(length)
    offset = position[None, :] - position[:, None]
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # In fp32 and in this order, like transformers: distances such as 16 and 32 lie exactly on a bucket's edge.
    with np.errstate(divide="ignore"):
        logarithm = np.log(distance.astype(np.float32) / np.float32(exact))
    steps = logarithm / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + np.maximum(steps, 0).astype(np.int64), half - 1)
    return (offset > 0) * half + np.where(distance < exact, distance, far)


def _open_position_buckets(length, num_buckets, max_distance):
    """The same as a Tensor [length * length] in a static graph, where ``length`` is a Tensor: looked up by offset."""
    known = relative_position_buckets(_LONGEST_IN_GRAPHS, num_buckets, max_distance)
    of_offset = paddle.to_tensor(np.concatenate([known[:0:-1, 0], known[0]]))  # from 1 - longest to longest - 1
    position = paddle.arange(length)
    offset = position.unsqueeze(0) - position.unsqueeze(1)
    return paddle.gather(of_offset, (offset + (_LONGEST_IN_GRAPHS - 1)).flatten())


def _padding_bias(attention_mask, ids, dtype):
    """``[B, 1, 1, L]``: 0 at tokens, a very negative finite number at padding."""
    mask = attention_mask if isinstance(attention_mask, paddle.Tensor) else paddle.to_tensor(attention_mask)
    if list(mask.shape) != list(ids.shape):
        raise InputError(f"attention_mask has shape {list(mask.shape)}, input_ids has {list(ids.shape)}.")
    lowest = -1e4 if dtype == paddle.float16 else -1e30
    return ((1.0 - mask.astype("float32")) * lowest).astype(dtype).unsqueeze([1, 2])


class _Block(nn.Layer):
    """``layer.0`` is self-attention, ``layer.1`` the feed-forward."""

    def __init__(self, config, has_position_bias):
        super().__init__()
        self.layer = nn.LayerList([_SelfAttentionLayer(config, has_position_bias), _FeedForwardLayer(config)])

    def forward(self, hidden, bias):
        return self.layer[1](self.layer[0](hidden, bias))


class _SelfAttentionLayer(nn.Layer):
    def __init__(self, config, has_position_bias):
        super().__init__()
        self.SelfAttention = _Attention(config, has_position_bias)
        self.layer_norm = _RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden, bias):
        return _residual(hidden, self.dropout(self.SelfAttention(self.layer_norm(hidden), bias)))


class _FeedForwardLayer(nn.Layer):
    def __init__(self, config):
        super().__init__()
        self.DenseReluDense = _FeedForward(config)
        self.layer_norm = _RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden):
        return _residual(hidden, self.dropout(self.DenseReluDense(self.layer_norm(hidden))))


def _residual(hidden, branch):
    """``hidden + branch`` in the wider of their dtypes, finite in fp16."""
    if hidden.dtype != branch.dtype:  # the feed-forward's fp32 island: the sum stays in fp32
        hidden, branch = hidden.astype("float32"), branch.astype("float32")
    total = hidden + branch
    return total.clip(-_FP16_LIMIT, _FP16_LIMIT) if total.dtype == paddle.float16 else total


class _Attention(nn.Layer):
    """Multi-head self-attention without bias terms and without the 1 / sqrt(d) scale (it is in the initial q)."""

    def __init__(self, config, has_position_bias):
        super().__init__()
        width, self.heads, self.head_width = config.d_model, config.num_heads, config.d_kv
        inner, factor = config.num_heads * config.d_kv, config.initializer_factor
        self.q = _linear(width, inner, factor * (width * config.d_kv) ** -0.5)
        self.k = _linear(width, inner, factor * width**-0.5)
        self.v = _linear(width, inner, factor * width**-0.5)
        self.o = _linear(inner, width, factor * inner**-0.5)
        if has_position_bias:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
            init_normal(self.relative_attention_bias.weight, factor * width**-0.5)

    def forward(self, x, bias):
        x = shared_input(x, self.q, self.k, self.v)
        q, k, v = (
            projection(x).reshape([0, 0, self.heads, self.head_width])  # [B, L, h, d]
            for projection in (self.q, self.k, self.v)
        )
        out = attention(q, k, v, bias=bias, scale=1.0)
        return self.o(out.reshape([0, 0, self.heads * self.head_width]))


class _FeedForward(nn.Layer):
    """``wo(act(wi x))``, or ``wo(act(wi_0 x) * wi_1 x)`` if gated."""

    def __init__(self, config):
        super().__init__()
        self.gated, self.activation = _parse_feed_forward(config.feed_forward_proj)
        std_in, std_out = config.d_model**-0.5, config.d_ff**-0.5
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            setattr(self, name, _linear(config.d_model, config.d_ff, config.initializer_factor * std_in))
        self.wo = _linear(config.d_ff, config.d_model, config.initializer_factor * std_out)

    def forward(self, x):
        dtype = self.wo.compute_dtype
        if not self.gated:
            return self.wo(self.activation(self.wi(x)).astype(dtype))
        x = shared_input(x, self.wi_0, self.wi_1)
        # Cast before the product: it is the product that leaves fp16's range.
        return self.wo(self.activation(self.wi_0(x)).astype(dtype) * self.wi_1(x).astype(dtype))


def _parse_feed_forward(name):
    """``feed_forward_proj`` -> (gated, activation)."""
    head, _, tail = name.rpartition("-")
    if head not in ("", "gated"):
        raise ConfigError(
            f"feed_forward_proj is {shown(name)}; it should be an activation or 'gated-' and an activation."
        )
    # transformers' one exception: T5 v1.1 says "gated-gelu" and means the tanh form
    tail = "gelu_new" if name == "gated-gelu" else tail
    return head == "gated", activation(tail, "feed_forward_proj")


class _RMSNorm(nn.Layer):
    """``x / rms(x) * weight``; statistics and quotient in fp32, result in the weight's dtype."""

    def __init__(self, width, epsilon):
        super().__init__()
        self.epsilon = epsilon
        self.weight = self.create_parameter([width], default_initializer=nn.initializer.Constant(1.0))

    def forward(self, x):
        return rms_norm(x.astype("float32"), self.weight, self.epsilon)


def _linear(in_features, out_features, std):
    linear = Linear(in_features, out_features, bias=False)
    init_normal(linear.weight, std)
    return linear
