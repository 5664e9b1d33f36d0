"""Joint attention: the layers (:class:`Attention`) and the arithmetic over them (the processors).

A processor is one of the three seams of the package: an adapter that must read or change Q, K, V replaces it by
``model.set_attn_processor``. Counterpart of diffusers' ``Attention`` as SD3 configures it and ``JointAttnProcessor2_0``
(ppdiffusers: ``JointAttnProcessor2_5``).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Callable

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..ops import Linear, QuantizedLinear, adapt, attention, base_of, joint_attention, linear, shared_input
from ..utils.checking import checks_arguments, shown
from ..utils.errors import ConfigError, InputError
from ..utils.paddle_internals import no_grad
from .attention_inputs import are_tokens, as_tokens, bias_of
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
        cross_attention_dim: None or D: image tokens look at image tokens. Text has ``added_kv_proj_dim``.
        heads, dim_head: h and d; ``h * d`` is the inner width.
        dropout: share of output values that training drops.
        bias: whether the projections to Q, K and V of the image tokens have a bias; those of the text tokens have one.
        added_kv_proj_dim: width of the text tokens; None makes plain self-attention.
        out_bias: whether the projections of the outputs have a bias.
        processor: default :class:`JointAttnProcessor2_5`.
        out_dim: None, or the inner width, which then has to be D.
        context_pre_only: the text stream ends here, so its output is not projected.
        qk_norm: None or ``"rms_norm"`` (SD3.5).

    Attributes:
        has_text_queries: whether text tokens ask. A block that drops what they learn turns it off.

    Shapes: ``hidden_states [B, N, D]``, ``encoder_hidden_states [B, L, added_kv_proj_dim]`` -> ``[B, N, D]`` and
    ``[B, L, D]`` (``[B, L, h * d]`` if ``context_pre_only``; None without ``has_text_queries``), or ``[B, N, D]`` alone
    without a text stream.

    Raises:
        ConfigError: widths that SD3's attention does not have, or another ``qk_norm``.
    """

    processor: AttentionProcessor

    @checks_arguments
    def __init__(
        self,
        query_dim: int,
        cross_attention_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
        bias: bool = False,
        added_kv_proj_dim: int | None = None,
        out_bias: bool = True,
        processor: AttentionProcessor | None = None,
        out_dim: int | None = None,
        context_pre_only: bool | None = False,
        qk_norm: str | None = None,
    ) -> None:
        super().__init__()
        if qk_norm not in (None, "rms_norm"):
            raise ConfigError(f"qk_norm is {shown(qk_norm)}; SD3 has None and SD3.5 has 'rms_norm'.")
        if cross_attention_dim not in (None, query_dim):
            raise ConfigError(
                f"cross_attention_dim is {cross_attention_dim}; in joint attention image tokens, of width {query_dim} "
                "(query_dim), look at one another. Give the width of the text tokens as added_kv_proj_dim."
            )
        if out_dim is not None and not out_dim == query_dim == heads * dim_head:
            raise ConfigError(
                f"out_dim is {out_dim}; it has to be query_dim ({query_dim}) and heads * dim_head "
                f"({heads} * {dim_head}). Leave it out where they differ."
            )
        self.heads, self.dim_head = heads, dim_head
        self.context_pre_only, self.has_text_queries = bool(context_pre_only), True
        inner_dim = heads * dim_head
        self.to_q, self.to_k, self.to_v = (Linear(query_dim, inner_dim, bias) for _ in range(3))
        self.to_out = nn.LayerList([Linear(inner_dim, query_dim, out_bias), nn.Dropout(dropout)])
        self.norm_q = RMSNorm(dim_head) if qk_norm else None
        self.norm_k = RMSNorm(dim_head) if qk_norm else None
        self.has_context = added_kv_proj_dim is not None
        if added_kv_proj_dim is not None:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (Linear(added_kv_proj_dim, inner_dim) for _ in range(3))
            self.norm_added_q = RMSNorm(dim_head) if qk_norm else None
            self.norm_added_k = RMSNorm(dim_head) if qk_norm else None
            self.to_add_out = None if context_pre_only else Linear(inner_dim, query_dim, out_bias)
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
        return _through(self.norm_q, q), _through(self.norm_k, k), v

    def qkv(self, hidden_states: paddle.Tensor) -> QKV:
        """Q, K, V of the image tokens, each [B, N, h, d], Q and K normalised where the model does."""
        return self.normalize(*self.project(hidden_states))

    def added_qkv(self, encoder_hidden_states: paddle.Tensor) -> QKV:
        """Q, K, V of the text tokens, each [B, L, h, d]; Q is None without ``has_text_queries``."""
        q, k, v = self._project(encoder_hidden_states, self._added_names)
        return _through(self.norm_added_q, q), _through(self.norm_added_k, k), v

    def project_out(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """The output of the image tokens: [B, N, h, d] -> [B, N, D]."""
        return self.to_out[1](self.to_out[0](tokens.flatten(2)))

    def project_added_out(self, tokens: paddle.Tensor | None) -> paddle.Tensor | None:
        """The output of the text tokens: [B, L, h, d] -> [B, L, D], or [B, L, h * d] where the text stream ends; None
        stays None."""
        return _through(self.to_add_out, None if tokens is None else tokens.flatten(2))

    @property
    def _added_names(self):
        return _ADDED_NAMES if self.has_text_queries else _ADDED_NAMES[1:]

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


def _through(layer: nn.Layer | None, x: Any) -> Any:
    return x if x is None or layer is None else layer(x)


def _fuse(layers):
    if all(isinstance(layer, QuantizedLinear) for layer in layers):
        return QuantizedLinear.concatenated(layers)
    weight = paddle.concat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else paddle.concat([layer.bias for layer in layers])
    return _FixedLinear(weight, bias)


class _FixedLinear:
    """A linear map that is no layer, so that no ``state_dict`` lists it."""

    @checks_arguments
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
        attention_mask: paddle.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """``[B, N, D]`` and ``[B, L, D]`` (or None) -> the same pair, or ``[B, N, D]`` alone without text.

        Args:
            attn: the projections.
            hidden_states, encoder_hidden_states: image and text tokens. Either may be a picture [B, D, H, W], and is
                given back as one.
            attention_mask: which of the N + L tokens are seen, [B, N + L] or per token; see
                ``attention_inputs.bias_of``.
            *args, **kwargs: refused.

        Raises:
            InputError: an argument that nothing uses, or a mask that does not fit the tokens.
        """
        if args or kwargs or not are_tokens(attn, hidden_states, encoder_hidden_states):
            call = partial(JointAttnProcessor2_5.__call__, self, attn)
            return as_tokens(call, attn, hidden_states, encoder_hidden_states, attention_mask, args, kwargs)
        image = attn.qkv(hidden_states)
        text = None if encoder_hidden_states is None else attn.added_qkv(encoder_hidden_states)
        options = {} if attention_mask is None else {"bias": bias_of(attention_mask, image, text)}
        image, learnt = self.attend(image, text, **options)
        image = attn.project_out(image)
        return image if text is None else (image, attn.project_added_out(learnt))

    def attend(
        self, image: QKV, text: QKV | None = None, bias: paddle.Tensor | None = None
    ) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """Which tokens see which: what a subclass, or an adapter that adds to it, replaces.

        Args:
            image, text: q, k, v, each [B, N, h, d] and [B, L, h, d]; q of the text, or all of it, may be None.
            bias: added to the scores, [1 or B, 1 or h, queries, keys]; only given where there is a mask.

        Returns:
            What image [B, N, h, d] and text [B, L, h, d] learn.
        """
        return (attention(*image, bias), None) if text is None else joint_attention(image, text, bias)

    def perturbed(self) -> JointAttnProcessor2_5:
        """The processor that stands in for this one in the weakened model of perturbed-attention guidance."""
        return _PERTURBED


class PAGJointAttnProcessor2_5(JointAttnProcessor2_5):
    """The weakened attention of perturbed-attention guidance: an image token sees itself and the text, but no other
    image token (Ahn et al., 2024). Text tokens see everything.

    Counterpart of the perturbed half of diffusers' ``PAGJointAttnProcessor2_0``; Q and K are normalised as the model
    does elsewhere, which diffusers leaves out for SD3.5.
    """

    def attend(
        self, image: QKV, text: QKV | None = None, bias: paddle.Tensor | None = None
    ) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """As :meth:`JointAttnProcessor2_5.attend`; without text each image token is left its own value.

        Raises:
            InputError: there is a mask.
        """
        if bias is not None:
            raise InputError("Perturbed attention takes no attention_mask. Leave it out, or set pag_scale to 0.")
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
        refuses_others = type(processor).__call__ is JointAttnProcessor2_5.__call__
        if any(p.kind is p.VAR_KEYWORD for p in parameters) and not refuses_others:
            return
        accepted.update(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    unknown = sorted(set(kwargs) - accepted)
    if unknown:
        raise InputError(
            f"joint_attention_kwargs has {', '.join(map(repr, unknown))}, which no attention processor here takes "
            f"(accepted: {', '.join(sorted(accepted)) or 'none'}). Remove it, or set a processor that uses it."
        )


JointAttnProcessor2_0 = JointAttnProcessor2_5  # diffusers' name

__path__: list[str] = []  # see utils/elsewhere.py
