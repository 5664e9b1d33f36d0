"""Joint attention: the layers (:class:`Attention`) and the arithmetic over them (the processors).

A processor is one of the three seams of the package: an adapter that must read or change Q, K, V replaces it by
``model.set_attn_processor``. Counterpart of diffusers' ``Attention`` as SD3 configures it and ``JointAttnProcessor2_0``
(ppdiffusers: ``JointAttnProcessor2_5``).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Callable

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..ops import Linear, QuantizedLinear, adapt, attention, base_of, joint_attention, linear, shared_input
from ..utils.errors import ConfigError, InputError
from ..utils.paddle_internals import no_grad
from .normalization import RMSNorm

# ``processor(attn, hidden_states, encoder_hidden_states, **joint_attention_kwargs)`` -> what the attention returns.
AttentionProcessor = Callable[..., Any]
# q, k, v, each [B, S, h, d]; where no token asks, q is None.
QKV = tuple[Any, paddle.Tensor, paddle.Tensor]

_NAMES = ("to_q", "to_k", "to_v")
_ADDED_NAMES = ("add_q_proj", "add_k_proj", "add_v_proj")


class Attention(nn.Layer):
    """Projections of self-attention over image tokens, or of joint attention over image and text tokens.

    Args:
        query_dim: width D of the tokens.
        heads, dim_head: h and d; ``h * d`` is the inner width.
        added_kv_proj_dim: width of the text tokens; None makes plain self-attention.
        context_pre_only: the text stream ends here, so its output is not projected.
        qk_norm: None or ``"rms_norm"`` (SD3.5).
        processor: default :class:`JointAttnProcessor2_5`.

    Shapes: ``hidden_states [B, N, D]``, ``encoder_hidden_states [B, L, D]`` -> the same pair (the second is None
    when ``context_pre_only``), or ``[B, N, D]`` alone without a text stream.
    """

    processor: AttentionProcessor

    def __init__(
        self,
        query_dim: int,
        heads: int,
        dim_head: int,
        added_kv_proj_dim: int | None = None,
        context_pre_only: bool = False,
        qk_norm: str | None = None,
        processor: AttentionProcessor | None = None,
    ) -> None:
        super().__init__()
        if qk_norm not in (None, "rms_norm"):
            raise ConfigError(f"qk_norm is {qk_norm!r}; SD3 has None and SD3.5 has 'rms_norm'.")
        self.heads, self.dim_head = heads, dim_head
        self.context_pre_only = context_pre_only
        inner_dim = heads * dim_head
        self.to_q, self.to_k, self.to_v = (Linear(query_dim, inner_dim) for _ in range(3))
        self.to_out = nn.LayerList([Linear(inner_dim, query_dim), nn.Dropout(0.0)])
        self.norm_q = RMSNorm(dim_head) if qk_norm else None
        self.norm_k = RMSNorm(dim_head) if qk_norm else None
        self.has_context = added_kv_proj_dim is not None
        if added_kv_proj_dim is not None:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (Linear(added_kv_proj_dim, inner_dim) for _ in range(3))
            self.norm_added_q = RMSNorm(dim_head) if qk_norm else None
            self.norm_added_k = RMSNorm(dim_head) if qk_norm else None
            self.to_add_out = None if context_pre_only else Linear(inner_dim, query_dim)
        self._fused = None
        self.set_processor(processor or JointAttnProcessor2_5())

    def set_processor(self, processor: AttentionProcessor) -> None:
        """Replaces the arithmetic; ``processor(attn, hidden_states, encoder_hidden_states, **kwargs)``.

        A processor may be a layer; its weights belong to the adapter that it is of, not to this layer.
        """
        object.__setattr__(self, "processor", processor)

    def project(self, hidden_states: paddle.Tensor) -> QKV:
        """Q, K, V of the image tokens, each [B, N, h, d], as the projections give them."""
        return self._project(hidden_states, _NAMES)

    def normalize(self, q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor) -> QKV:
        """What :meth:`project` gave, Q and K normalised where the model does."""
        return _normalized(q, self.norm_q), _normalized(k, self.norm_k), v

    def qkv(self, hidden_states: paddle.Tensor) -> QKV:
        """Q, K, V of the image tokens, each [B, N, h, d], Q and K normalised where the model does."""
        return self.normalize(*self.project(hidden_states))

    def added_qkv(self, encoder_hidden_states: paddle.Tensor) -> QKV:
        """Q, K, V of the text tokens, each [B, L, h, d]; Q is None where the text stream ends (``context_pre_only``).

        What text would learn in the last block is thrown away, so its queries are not asked.
        """
        q, k, v = self._project(encoder_hidden_states, self._added_names)
        return _normalized(q, self.norm_added_q), _normalized(k, self.norm_added_k), v

    def project_out(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """The output of the image tokens: [B, N, h, d] -> [B, N, D]."""
        return self.to_out[1](self.to_out[0](tokens.flatten(2)))

    def project_added_out(self, tokens: paddle.Tensor | None) -> paddle.Tensor | None:
        """The output of the text tokens: [B, L, h, d] -> [B, L, D]; None stays None."""
        return None if tokens is None or self.to_add_out is None else self.to_add_out(tokens.flatten(2))

    @property
    def _added_names(self):
        return _ADDED_NAMES[1:] if self.context_pre_only else _ADDED_NAMES

    def _project(self, tokens, names):
        layers = [getattr(self, name) for name in names]
        if self._fused is not None and paddle.in_dynamic_mode():  # a static graph holds parameters, not copies
            projected = self._fused[names](tokens).chunk(len(names), axis=-1)
            projected = [adapt(layer, tokens, y) for layer, y in zip(layers, projected)]
        else:
            tokens = shared_input(tokens, *layers)
            projected = [layer(tokens) for layer in layers]
        *q, k, v = (x.reshape([0, 0, self.heads, self.dim_head]) for x in projected)
        return q[0] if q else None, k, v

    @no_grad
    def fuse_projections(self) -> None:
        """Q, K and V by one matrix product. A copy made for inference: fuse after weights and dtype are final.

        The copies are no parameters: what is saved, trained and counted stays the checkpoint's own tensors.
        """
        fused = {}
        for names in (_NAMES, self._added_names) if self.has_context else (_NAMES,):
            layers = [base_of(getattr(self, name)) for name in names]
            fused[names] = _fuse(layers)
        object.__setattr__(self, "_fused", fused)

    def unfuse_projections(self) -> None:
        """Three matrix products again."""
        object.__setattr__(self, "_fused", None)

    def forward(
        self,
        hidden_states: paddle.Tensor,
        encoder_hidden_states: paddle.Tensor | None = None,
        processor: AttentionProcessor | None = None,
        **kwargs: Any,
    ) -> Any:
        """``processor`` is this call's, in the place of the layer's own; it gets ``kwargs``."""
        return (processor or self.processor)(self, hidden_states, encoder_hidden_states, **kwargs)


def _normalized(x: Any, norm: RMSNorm | None) -> Any:
    return x if x is None or norm is None else norm(x)


def _fuse(layers):
    if all(isinstance(layer, QuantizedLinear) for layer in layers):
        return QuantizedLinear.concatenated(layers)
    weight, bias = (paddle.concat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
    return _FixedLinear(weight, bias)


class _FixedLinear:
    """A linear map that is no layer, so that no ``state_dict`` lists it."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    def __call__(self, x):
        return linear(x, self.weight, self.bias)


class JointAttnProcessor2_5:
    """One softmax over image and text tokens, image first (paper, figure 2b); plain self-attention without text."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: paddle.Tensor,
        encoder_hidden_states: paddle.Tensor | None = None,
    ) -> Any:
        """``[B, N, D]`` and ``[B, L, D]`` (or None) -> the same pair, or ``[B, N, D]`` alone without text."""
        if encoder_hidden_states is None:
            return attn.project_out(self.attend(attn.qkv(hidden_states))[0])
        image, text = self.attend(attn.qkv(hidden_states), attn.added_qkv(encoder_hidden_states))
        return attn.project_out(image), attn.project_added_out(text)

    def attend(self, image: QKV, text: QKV | None = None) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """Which tokens see which: what a subclass, or an adapter that adds to it, replaces.

        Args:
            image, text: q, k, v, each [B, N, h, d] and [B, L, h, d]; q of the text, or all of it, may be None.

        Returns:
            What image [B, N, h, d] and text [B, L, h, d] learn.
        """
        return (attention(*image), None) if text is None else joint_attention(image, text)

    def perturbed(self) -> JointAttnProcessor2_5:
        """The processor that stands in for this one in the weakened model of perturbed-attention guidance."""
        return _PERTURBED


class PAGJointAttnProcessor2_5(JointAttnProcessor2_5):
    """The weakened attention of perturbed-attention guidance: an image token sees itself and the text, but no other
    image token (Ahn et al., 2024). Text tokens see everything.

    Counterpart of the perturbed half of diffusers' ``PAGJointAttnProcessor2_0``; Q and K are normalised as the model
    does elsewhere, which diffusers leaves out for SD3.5.
    """

    def attend(self, image: QKV, text: QKV | None = None) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """As :meth:`JointAttnProcessor2_5.attend`; without text each image token is left its own value."""
        q, k, v = image
        if text is None:
            return v, None
        text_q, text_k, text_v = text
        learnt = self._self_and_text(q, k, v, text_k, text_v)
        if text_q is None:
            return learnt, None
        keys, values = paddle.concat([k, text_k], axis=1), paddle.concat([v, text_v], axis=1)
        return learnt, attention(text_q, keys, values)

    @staticmethod
    def _self_and_text(q, k, v, text_k, text_v):
        """One softmax over a token's own key and the L keys of the text: all [B, N or L, h, d] -> [B, N, h, d]."""
        q = q * q.shape[-1] ** -0.5
        q_heads, text_k, text_v = (x.transpose([0, 2, 1, 3]) for x in (q, text_k, text_v))  # [B, h, ., d]
        own = (q * k).sum(axis=-1, keepdim=True).transpose([0, 2, 1, 3])  # [B, h, N, 1]
        scores = paddle.concat([own, paddle.matmul(q_heads, text_k, transpose_y=True)], axis=-1)
        own, text = F.softmax(scores, axis=-1).split([1, text_k.shape[2]], axis=-1)
        return paddle.matmul(text, text_v).transpose([0, 2, 1, 3]) + own.transpose([0, 2, 1, 3]) * v


_PERTURBED = PAGJointAttnProcessor2_5()


def perturbed(processor: AttentionProcessor) -> AttentionProcessor:
    """What stands in for ``processor`` in the weakened model of perturbed-attention guidance."""
    return processor.perturbed() if hasattr(processor, "perturbed") else _PERTURBED


def check_attention_kwargs(processors: Iterable[AttentionProcessor], kwargs: Mapping[str, Any]) -> None:
    """Refuses an entry of ``joint_attention_kwargs`` that no processor takes.

    Raises:
        InputError: names the entry and what the processors in use accept.
    """
    accepted = set()
    for processor in processors:
        parameters = list(inspect.signature(processor.__call__).parameters.values())[3:]
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return
        accepted.update(p.name for p in parameters)
    unknown = sorted(set(kwargs) - accepted)
    if unknown:
        raise InputError(
            f"joint_attention_kwargs has {', '.join(map(repr, unknown))}, which no attention processor here takes "
            f"(accepted: {', '.join(sorted(accepted)) or 'none'}). Remove it, or set a processor that uses it."
        )


JointAttnProcessor2_0 = JointAttnProcessor2_5  # diffusers' name

__path__: list[str] = []  # see utils/elsewhere.py
