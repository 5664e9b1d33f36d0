"""Layer norms whose shift, scale and gate come from the conditioning vector (adaLN), and RMS norm.

Counterparts of diffusers' ``AdaLayerNorm``, ``AdaLayerNormZero``, ``SD35AdaLayerNormZeroX``,
``AdaLayerNormContinuous`` and ``RMSNorm``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Union

import paddle
from paddle import nn

from ..ops import AffineLayerNorm, LayerNorm, Linear, modulate, norm_modulate, rms_norm
from ..utils.errors import ConfigError, InputError
from .embeddings import CombinedTimestepLabelEmbeddings

# What steers a norm: the conditioning vector [B, D], or the chunks [B, D] that the norm's ``modulation`` made of it.
Conditioning = Union[paddle.Tensor, list[paddle.Tensor]]


class Modulated(NamedTuple):
    """Input of a block's attention, and what steers the rest of the block. Tensors [B, S, D] and [B, D]."""

    hidden_states: paddle.Tensor
    gate_msa: paddle.Tensor
    shift_mlp: paddle.Tensor
    scale_mlp: paddle.Tensor
    gate_mlp: paddle.Tensor


class DualModulated(NamedTuple):
    """:class:`Modulated`, and input and gate of the second attention of SD3.5-medium."""

    hidden_states: paddle.Tensor
    gate_msa: paddle.Tensor
    shift_mlp: paddle.Tensor
    scale_mlp: paddle.Tensor
    gate_mlp: paddle.Tensor
    hidden_states2: paddle.Tensor
    gate_msa2: paddle.Tensor


class _AdaLayerNorm(nn.Layer):
    """Projects the conditioning vector to ``chunks`` vectors of the width it modulates.

    The projection depends on time and text alone, so sampling makes it for many steps at once (:meth:`modulation`)
    and calls the layer with a step's part of it in the place of the vector. ``norm`` is by default a layer norm without
    weight and bias.
    """

    def __init__(
        self, conditioning_dim: int, embedding_dim: int, chunks: int, norm: nn.Layer | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        self.chunks = chunks
        self.silu = nn.Silu()
        self.linear = Linear(conditioning_dim, chunks * embedding_dim, bias)
        self.norm = LayerNorm(embedding_dim) if norm is None else norm

    def modulation(self, emb: paddle.Tensor) -> list[paddle.Tensor]:
        """``emb [..., B, D]`` -> ``chunks`` tensors [..., B, D]."""
        return self.linear(self.silu(emb)).chunk(self.chunks, axis=-1)

    def forward(self, x: paddle.Tensor, conditioning_embedding: Conditioning) -> Any:
        given = conditioning_embedding
        return self._modulated(x, *(given if isinstance(given, list) else self.modulation(given)))

    def _modulated(self, x, *chunks):
        """``x [B, S, D]``, normalised and modulated by ``chunks`` [B, D]."""
        raise NotImplementedError


class AdaLayerNormZero(_AdaLayerNorm):
    """Six chunks: shift, scale, gate for attention; shift, scale, gate for the feed-forward (DiT, adaLN-Zero).

    Args:
        embedding_dim: width D.
        num_embeddings: number of class labels; with it the layer embeds a timestep and a label itself, as DiT does.
            SD3 has None, and is given the conditioning vector.

    Shapes: ``x [B, S, D]``, ``emb [B, D]`` (or ``timestep [B]`` and ``class_labels [B]``) -> the five of
    :class:`Modulated`: ``x [B, S, D]``, ``gate_msa, shift_mlp, scale_mlp, gate_mlp [B, D]``.
    """

    def __init__(self, embedding_dim: int, num_embeddings: int | None = None) -> None:
        super().__init__(embedding_dim, embedding_dim, chunks=6)
        self.emb = None if num_embeddings is None else CombinedTimestepLabelEmbeddings(num_embeddings, embedding_dim)

    def forward(
        self,
        x: paddle.Tensor,
        timestep: paddle.Tensor | None = None,
        class_labels: paddle.Tensor | None = None,
        hidden_dtype: paddle.dtype | str | None = None,
        emb: Conditioning | None = None,
    ) -> Modulated:
        """``hidden_dtype``: what features of the timestep are cast to, by default the dtype of the weights.

        Raises:
            InputError: ``emb`` is missing, or ``timestep`` and ``class_labels`` where there is ``num_embeddings``; or
                what the layer has no use for is given.
        """
        if self.emb is not None or emb is None or timestep is not None or class_labels is not None:
            emb = self._embedded(timestep, class_labels, hidden_dtype, emb)
        return super().forward(x, emb)

    def _embedded(self, timestep, class_labels, hidden_dtype, emb) -> paddle.Tensor:
        made_here, given = self.emb is not None, (timestep is not None, class_labels is not None, emb is not None)
        if given != (made_here, made_here, not made_here):
            wanted = "timestep and class_labels" if made_here else "emb, the conditioning vector (by its name)"
            raise InputError(
                f"This AdaLayerNormZero was built {'with' if made_here else 'without'} num_embeddings: beside x it "
                f"takes {wanted}, and nothing else."
            )
        embed: Any = self.emb
        return embed(timestep, class_labels, hidden_dtype)

    def _modulated(self, x, shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp):
        return Modulated(norm_modulate(x, self.norm, shift_msa, scale_msa), gate_msa, shift_mlp, scale_mlp, gate_mlp)


class SD35AdaLayerNormZeroX(_AdaLayerNorm):
    """Nine chunks: the six of :class:`AdaLayerNormZero`, then shift, scale, gate of the second attention.

    Both attentions read the same normalised input, modulated twice (SD3.5-medium, "MMDiT-X").

    Shapes: ``x [B, S, D]``, ``emb [B, D]`` -> the seven of :class:`DualModulated`.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__(embedding_dim, embedding_dim, chunks=9)

    def forward(self, x: paddle.Tensor, emb: Conditioning) -> DualModulated:
        return super().forward(x, emb)

    def _modulated(
        self, x, shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp, shift_msa2, scale_msa2, gate_msa2
    ):
        normalized = self.norm(x)
        return DualModulated(
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
        return norm_modulate(x, self.norm, shift, scale)


class AdaLayerNormContinuous(_AdaLayerNorm):
    """Two chunks, in the order **scale, shift**, unlike the others: the final norm and the last text norm.

    Args:
        embedding_dim: width D of what is normalised.
        conditioning_embedding_dim: width of the conditioning vector.
        elementwise_affine: whether the norm has a weight (and a bias, if ``bias``) of its own. SD3: False.
        eps: added to the variance. SD3: 1e-6.
        bias: whether the projection of the conditioning vector has a bias.
        norm_type: ``"layer_norm"`` or ``"rms_norm"``, which has no bias.

    Shapes: ``x [B, S, D]``, ``conditioning_embedding [B, conditioning_embedding_dim]`` -> ``[B, S, D]``.

    Raises:
        ConfigError: another ``norm_type``.
    """

    def __init__(
        self,
        embedding_dim: int,
        conditioning_embedding_dim: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        bias: bool = True,
        norm_type: str = "layer_norm",
    ) -> None:
        if norm_type not in ("layer_norm", "rms_norm"):
            raise ConfigError(f"norm_type is {norm_type!r}; it can be 'layer_norm' or 'rms_norm'.")
        if norm_type == "layer_norm":
            norm = AffineLayerNorm(embedding_dim, eps, bias) if elementwise_affine else LayerNorm(embedding_dim, eps)
        else:
            norm = RMSNorm(embedding_dim, eps, elementwise_affine)
        super().__init__(conditioning_embedding_dim, embedding_dim, 2, norm, bias)

    def _modulated(self, x, scale, shift):
        return norm_modulate(x, self.norm, shift, scale)


class RMSNorm(nn.Layer):
    """RMS norm over the last axis: ``[..., dim] -> [..., dim]``; variance in fp32.

    On Q and K it keeps attention logits from growing in high-resolution training (paper, section 5.3.2).

    Args:
        dim: size of the last axis.
        eps: added to the variance.
        elementwise_affine: whether there is a parameter ``weight [dim]``; otherwise that is ones.
    """

    def __init__(self, dim: int, eps: float = 1e-6, elementwise_affine: bool = True) -> None:
        super().__init__()
        self.epsilon = eps
        if elementwise_affine:
            self.weight = self.create_parameter([dim], default_initializer=nn.initializer.Constant(1.0))
        else:
            self.register_buffer("weight", paddle.ones([dim]), persistable=False)

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        return rms_norm(hidden_states, self.weight, self.epsilon)
