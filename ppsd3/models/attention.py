"""The MM-DiT block: two streams with weights of their own that meet in one attention (paper, figure 2b)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional, Union

import paddle
from paddle import nn

from ..modeling_utils import ModelMixin
from ..ops import LayerNorm, Linear, gated_residual, norm_modulate
from ..utils.errors import ConfigError, InputError
from ..utils.threads import changes_networks
from .activations import get_projection
from .attention_processor import Attention, AttentionProcessor, check_attention_kwargs
from .normalization import AdaLayerNormContinuous, AdaLayerNormZero, SD35AdaLayerNormZeroX

# What steers a block: the conditioning vector [B, D], or for each stream the chunks that ``modulation`` made of it.
BlockConditioning = Union[paddle.Tensor, tuple[list[paddle.Tensor], ...]]
# What a block returns: text tokens, None where they end, and image tokens.
Streams = tuple[Optional[paddle.Tensor], paddle.Tensor]


class FeedForward(nn.Layer):
    """``net.2(gelu(net.0.proj(x)))``, four times as wide inside: ``[B, S, D] -> [B, S, dim_out]``.

    Args:
        dim: width D.
        dim_out: width of the result; default D.
        mult: inner width over D.
        dropout: share of inner values that training drops.
        activation_fn: ``"gelu-approximate"`` (SD3), ``"gelu"``, ``"geglu"`` or ``"geglu-approximate"``.
        final_dropout: whether training drops values of the result too.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        mult: int = 4,
        dropout: float = 0.0,
        activation_fn: str = "gelu-approximate",
        final_dropout: bool = False,
    ) -> None:
        super().__init__()
        inner, outer = int(dim * mult), dim if dim_out is None else dim_out
        self.net = nn.LayerList([get_projection(activation_fn, dim, inner), nn.Dropout(dropout), Linear(inner, outer)])
        if final_dropout:
            self.net.append(nn.Dropout(dropout))
        self.chunk_size, self.chunk_dim = None, 0

    def set_chunk_feed_forward(self, chunk_size: int | None, dim: int = 0) -> None:
        """Work on ``chunk_size`` slices of axis ``dim`` (0 batch, 1 sequence) at a time; None for all at once."""
        self.chunk_size, self.chunk_dim = chunk_size, dim

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        size = hidden_states.shape[self.chunk_dim]
        if self.chunk_size is None or size <= self.chunk_size:
            return self._run(hidden_states)
        return self._run_in_chunks(hidden_states, size, self.chunk_size)

    def _run_in_chunks(self, hidden_states, size, chunk_size):
        starts = range(0, size, chunk_size)
        chunks = [hidden_states.slice([self.chunk_dim], [i], [min(i + chunk_size, size)]) for i in starts]
        return paddle.concat([self._run(chunk) for chunk in chunks], axis=self.chunk_dim)

    def _run(self, hidden_states):
        for layer in self.net:
            hidden_states = layer(hidden_states)
        return hidden_states


class JointTransformerBlock(nn.Layer):
    """One MM-DiT block.

    Args:
        dim: width D.
        num_attention_heads: h.
        attention_head_dim: d, as in diffusers, or the width of all heads, as in ppdiffusers: the one that makes D.
        context_pre_only: the last block: text serves the attention and is then dropped.
        qk_norm: None or ``"rms_norm"``.
        use_dual_attention: a second, image-only attention on the block's input (SD3.5-medium).

    Raises:
        ConfigError: the heads do not make up the width D.

    Shapes: ``hidden_states [B, N, D]``, ``encoder_hidden_states [B, L, D]``, ``temb [B, D]`` (or its
    :meth:`modulation`) -> ``(encoder_hidden_states or None, hidden_states)``, text first as in diffusers.
    """

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        context_pre_only: bool = False,
        qk_norm: str | None = None,
        use_dual_attention: bool = False,
    ) -> None:
        super().__init__()
        self.context_pre_only, self.use_dual_attention = context_pre_only, use_dual_attention
        self.norm1 = SD35AdaLayerNormZeroX(dim) if use_dual_attention else AdaLayerNormZero(dim)
        self.norm1_context = (
            AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
            if context_pre_only
            else AdaLayerNormZero(dim)
        )
        heads = _heads(dim, num_attention_heads, attention_head_dim, qk_norm)
        self.attn = Attention(added_kv_proj_dim=dim, context_pre_only=context_pre_only, **heads)
        self.attn.has_text_queries = not context_pre_only
        self.attn2 = Attention(**heads) if use_dual_attention else None
        self.norm2, self.ff = LayerNorm(dim), FeedForward(dim)
        self.norm2_context = None if context_pre_only else LayerNorm(dim)
        self.ff_context = None if context_pre_only else FeedForward(dim)

    def modulation(self, temb: paddle.Tensor) -> tuple[list[paddle.Tensor], ...]:
        """Shifts, scales and gates: ``temb [..., B, D]`` -> for each stream a list of [..., B, D]."""
        return self.norm1.modulation(temb), self.norm1_context.modulation(temb)

    def forward(
        self,
        hidden_states: paddle.Tensor,
        encoder_hidden_states: paddle.Tensor,
        temb: BlockConditioning,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
        attn_processors: Mapping[str, AttentionProcessor] | None = None,
    ) -> Streams:
        """``attn_processors``: ``"attn"`` or ``"attn2"`` -> the processor of this call, in the place of the layer's."""
        kwargs, processors = joint_attention_kwargs or {}, attn_processors or {}
        for_image, for_text = temb if isinstance(temb, tuple) else (temb, temb)
        image = self.norm1(hidden_states, emb=for_image)
        if self.context_pre_only:
            text_input = self.norm1_context(encoder_hidden_states, for_text)
        else:
            text = self.norm1_context(encoder_hidden_states, emb=for_text)
            text_input = text.hidden_states

        image_output, text_output = self.attn(
            image.hidden_states, text_input, processor=processors.get("attn"), **kwargs
        )

        hidden_states = gated_residual(hidden_states, image.gate_msa, image_output)
        if self.attn2 is not None:
            output = self.attn2(image.hidden_states2, processor=processors.get("attn2"), **kwargs)
            hidden_states = gated_residual(hidden_states, image.gate_msa2, output)
        hidden_states = _feed_forward(self.norm2, self.ff, hidden_states, image)
        if self.ff_context is None:
            return None, hidden_states

        encoder_hidden_states = gated_residual(encoder_hidden_states, text.gate_msa, text_output)
        return _feed_forward(self.norm2_context, self.ff_context, encoder_hidden_states, text), hidden_states


class SD3SingleTransformerBlock(nn.Layer):
    """A block of image tokens alone, as ControlNets of SD3.5-large have it.

    Args:
        dim: width D.
        num_attention_heads, attention_head_dim: as in :class:`JointTransformerBlock`.

    Shapes: those of :class:`JointTransformerBlock`, with None for the text that goes in and out.
    """

    context_pre_only = True

    def __init__(self, dim: int, num_attention_heads: int, attention_head_dim: int) -> None:
        super().__init__()
        self.norm1 = AdaLayerNormZero(dim)
        self.attn = Attention(**_heads(dim, num_attention_heads, attention_head_dim))
        self.norm2, self.ff = LayerNorm(dim), FeedForward(dim)

    def modulation(self, temb: paddle.Tensor) -> tuple[list[paddle.Tensor], ...]:
        """See :meth:`JointTransformerBlock.modulation`."""
        return (self.norm1.modulation(temb),)

    def forward(
        self,
        hidden_states: paddle.Tensor,
        encoder_hidden_states: None,
        temb: BlockConditioning,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
        attn_processors: Mapping[str, AttentionProcessor] | None = None,
    ) -> Streams:
        """See :meth:`JointTransformerBlock.forward`."""
        image = self.norm1(hidden_states, emb=temb[0] if isinstance(temb, tuple) else temb)
        processor = (attn_processors or {}).get("attn")
        output = self.attn(image.hidden_states, processor=processor, **(joint_attention_kwargs or {}))
        hidden_states = gated_residual(hidden_states, image.gate_msa, output)
        return None, _feed_forward(self.norm2, self.ff, hidden_states, image)


def _heads(dim, num_attention_heads, attention_head_dim, qk_norm=None):
    """Arguments of an :class:`Attention` of width ``dim``, whichever width ``attention_head_dim`` is."""
    dim_head = dim // num_attention_heads
    if dim_head * num_attention_heads != dim or attention_head_dim not in (dim_head, dim):
        raise ConfigError(
            f"num_attention_heads is {num_attention_heads} and attention_head_dim {attention_head_dim}, which makes no "
            f"width of {dim} (dim). attention_head_dim is the width of one head, dim / num_attention_heads, or of all."
        )
    return {"query_dim": dim, "heads": num_attention_heads, "dim_head": dim_head, "bias": True, "qk_norm": qk_norm}


def _feed_forward(norm, feed_forward, tokens, modulated):
    normalized = norm_modulate(tokens, norm, modulated.shift_mlp, modulated.scale_mlp)
    return gated_residual(tokens, modulated.gate_mlp, feed_forward(normalized))


class AttentionMixin(ModelMixin):
    """The seam of attention processors and the switches of blocks, under their diffusers names: for networks that have
    :class:`Attention` and :class:`FeedForward` in them."""

    @property
    def attn_processors(self) -> dict[str, AttentionProcessor]:
        """Name of each attention plus ``.processor`` -> its processor."""
        return {f"{name}.processor": layer.processor for name, layer in self._attentions()}

    @changes_networks
    def set_attn_processor(self, processor: AttentionProcessor | dict[str, AttentionProcessor]) -> None:
        """Sets one processor for all attentions, or one per name from a dict like :attr:`attn_processors`.

        Raises:
            InputError: the dict lacks or misnames an attention.
        """
        attentions = {f"{name}.processor": layer for name, layer in self._attentions()}
        if not isinstance(processor, dict):
            processor = dict.fromkeys(attentions, processor)
        wrong = sorted(set(attentions) ^ set(processor))
        if wrong:
            raise InputError(
                f"set_attn_processor takes one processor for each of the {len(attentions)} attentions; "
                f"missing or unknown: {wrong[:5]}. Start from model.attn_processors."
            )
        for name, layer in attentions.items():
            layer.set_processor(processor[name])
        self._forget_graphs()

    def _check_attention(self, kwargs, processors):
        """Refuses ``kwargs`` that no processor takes, and ``processors`` (name -> processor) for no attention; where
        there are neither, no attention is looked for."""
        if not kwargs and not processors:
            return
        own = self.attn_processors
        self._check_names(processors, own)
        check_attention_kwargs({**own, **processors}.values(), kwargs)

    def _check_names(self, processors, own):
        unknown = sorted(set(processors) - set(own))
        if unknown:
            raise InputError(
                f"attn_processors has {unknown[:5]}, which this {type(self).__name__} does not have. Take names from "
                "model.attn_processors."
            )

    @changes_networks
    def fuse_qkv_projections(self) -> None:
        """Computes Q, K and V by one product per stream. Call again after weights or dtype change."""
        for _, layer in self._attentions():
            layer.fuse_projections()
        self._forget_graphs()

    @changes_networks
    def unfuse_qkv_projections(self) -> None:
        """Undoes :meth:`fuse_qkv_projections`."""
        for _, layer in self._attentions():
            layer.unfuse_projections()
        self._forget_graphs()

    @changes_networks
    def enable_forward_chunking(self, chunk_size: int | None = None, dim: int = 0) -> None:
        """Runs feed-forwards on ``chunk_size`` (default 1) slices of axis ``dim``: less memory, more time."""
        set_chunk_feed_forward(self, chunk_size or 1, dim)
        self._forget_graphs()

    @changes_networks
    def disable_forward_chunking(self) -> None:
        """Runs feed-forwards on all tokens at once again."""
        set_chunk_feed_forward(self, None, 0)
        self._forget_graphs()

    def _attentions(self) -> list[tuple[str, Attention]]:
        return [(name, layer) for name, layer in self.named_sublayers() if isinstance(layer, Attention)]


def set_chunk_feed_forward(model: nn.Layer, chunk_size: int | None, dim: int) -> None:
    """Sets the chunking of every :class:`FeedForward` in ``model``.

    Raises:
        InputError: ``dim`` is neither 0 (batch) nor 1 (sequence).
    """
    if dim not in (0, 1):
        raise InputError(f"dim is {dim!r}; feed-forward chunks run over 0 (batch) or 1 (sequence).")
    for layer in model.sublayers():
        if isinstance(layer, FeedForward):
            layer.set_chunk_feed_forward(chunk_size, dim)
