"""Layer norms whose shift, scale and gate come from the conditioning vector (adaLN), and RMS norm.

Counterparts of diffusers' ``AdaLayerNorm``, ``AdaLayerNormZero``, ``SD35AdaLayerNormZeroX``,
``AdaLayerNormContinuous`` and ``RMSNorm``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Union

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..ops import Linear, layer_norm, layer_norm_modulate, modulate, rms_norm

# What steers a norm: the conditioning vector [B, D], or the chunks [B, D] that the norm's ``modulation`` made of it.
Conditioning = Union[paddle.Tensor, list[paddle.Tensor]]


class Modulated(NamedTuple):
    """Input of a block's attention, and what steers the rest of the block. Tensors [B, S, D] and [B, D]."""

    hidden_states: paddle.Tensor
    gate_msa: paddle.Tensor
    shift_mlp: paddle.Tensor
    scale_mlp: paddle.Tensor
    gate_mlp: paddle.Tensor
    hidden_states2: paddle.Tensor | None = None  # input of the second attention of SD3.5-medium
    gate_msa2: paddle.Tensor | None = None


class _AdaLayerNorm(nn.Layer):
    """Projects the conditioning vector to ``chunks`` vectors of the width it modulates.

    The projection depends on time and text alone, so sampling makes it for many steps at once (:meth:`modulation`)
    and calls the layer with a step's part of it in the place of ``emb``.
    """

    def __init__(self, conditioning_dim: int, embedding_dim: int, chunks: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.chunks, self.epsilon = chunks, epsilon
        self.linear = Linear(conditioning_dim, chunks * embedding_dim)

    def modulation(self, emb: paddle.Tensor) -> list[paddle.Tensor]:
        """``emb [..., B, D]`` -> ``chunks`` tensors [..., B, D]."""
        return self.linear(F.silu(emb)).chunk(self.chunks, axis=-1)

    def forward(self, x: paddle.Tensor, emb: Conditioning) -> Any:
        return self._modulated(x, *(emb if isinstance(emb, list) else self.modulation(emb)))

    def _modulated(self, x, *chunks):
        """``x [B, S, D]``, normalised and modulated by ``chunks`` [B, D]."""
        raise NotImplementedError


class AdaLayerNormZero(_AdaLayerNorm):
    """Six chunks: shift, scale, gate for attention; shift, scale, gate for the feed-forward (DiT, adaLN-Zero).

    Shapes: ``x [B, S, D]``, ``emb [B, D]`` -> :class:`Modulated`.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__(embedding_dim, embedding_dim, chunks=6)

    def _modulated(self, x, shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp):
        return Modulated(
            layer_norm_modulate(x, shift_msa, scale_msa, self.epsilon), gate_msa, shift_mlp, scale_mlp, gate_mlp
        )


class SD35AdaLayerNormZeroX(_AdaLayerNorm):
    """Nine chunks: the six of :class:`AdaLayerNormZero`, then shift, scale, gate of the second attention.

    Both attentions read the same normalised input, modulated twice (SD3.5-medium, "MMDiT-X").
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__(embedding_dim, embedding_dim, chunks=9)

    def _modulated(
        self, x, shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp, shift_msa2, scale_msa2, gate_msa2
    ):
        normalized = layer_norm(x, self.epsilon)
        return Modulated(
            modulate(normalized, shift_msa, scale_msa),
            gate_msa,
            shift_mlp,
            scale_mlp,
            gate_mlp,
            modulate(normalized, shift_msa2, scale_msa2),
            gate_msa2,
        )


class AdaLayerNorm(_AdaLayerNorm):
    """Two chunks: shift, scale (of the picture tokens of an IP-adapter).

    Args:
        embedding_dim: width of the conditioning vector.
        dim: width D of what is normalised.
    """

    def __init__(self, embedding_dim: int, dim: int) -> None:
        super().__init__(embedding_dim, dim, chunks=2)

    def _modulated(self, x, shift, scale):
        return layer_norm_modulate(x, shift, scale, self.epsilon)


class AdaLayerNormContinuous(_AdaLayerNorm):
    """Two chunks, in the order **scale, shift**, unlike the others: the final norm and the last text norm.

    Args:
        embedding_dim: width D of what is normalised.
        conditioning_embedding_dim: width of the conditioning vector.
        eps: added to the variance.
    """

    def __init__(self, embedding_dim: int, conditioning_embedding_dim: int, eps: float = 1e-6) -> None:
        super().__init__(conditioning_embedding_dim, embedding_dim, chunks=2, epsilon=eps)

    def _modulated(self, x, scale, shift):
        return layer_norm_modulate(x, shift, scale, self.epsilon)


class RMSNorm(nn.Layer):
    """RMS norm with a weight over the last axis: ``[..., dim] -> [..., dim]``; variance in fp32 (eps 1e-6).

    On Q and K it keeps attention logits from growing in high-resolution training (paper, section 5.3.2).
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.epsilon = eps
        self.weight = self.create_parameter([dim], default_initializer=nn.initializer.Constant(1.0))

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        return rms_norm(hidden_states, self.weight, self.epsilon)
