"""Softmax attention on ``[B, S, h, d]``: one signature, several ways of computing it."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ..utils.paddle_internals import flags, memory_efficient_attention
from . import onednn, proving
from .dispatch import Implementation, native, onednn as by_onednn, operation, reference
from .native import attention as kernels
from .shapes import shape_of, tracked

_16_BITS = (paddle.float16, paddle.bfloat16)
_MAX_SCORES = 2**25  # numbers: 128 MB in float32, of each of the few that a block of queries needs at once


def _heads_split(q, k, v, bias=None, causal=False, scale=None):
    """One head at a time, without a transpose.

    Paddle's CPU transposes of ``[B, S, h, d]`` cost more than the attention itself; a slice of the last axis is a
    plain strided copy, and one head's scores stay in the cache.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    heads = []
    # unbind, not indexing: the gradient of h indexings is h tensors as large as q, mostly zeros
    for i, (q_i, k_i, v_i) in enumerate(zip(*(x.unbind(2) for x in (q * scale, k, v)))):
        head_bias = None if bias is None else (bias[:, i] if bias.shape[1] > 1 else bias[:, 0])
        scores = paddle.matmul(q_i, k_i, transpose_y=True)  # [B, Sq, Sk]
        heads.append(paddle.matmul(_softmax(_masked(scores, head_bias, causal)), v_i))
    return paddle.stack(heads, axis=2)


@operation(by_onednn(onednn.softmax_, gradients=False))
def _softmax(x):
    """Softmax over the last axis; may use up ``x``, which is contiguous."""
    return F.softmax(x, axis=-1)


def _in_blocks(q, k, v, bias=None, causal=False, scale=None):
    """The definition for some queries at a time, so that without gradients memory grows with S, not with S * S."""
    scale, bias = q.shape[-1] ** -0.5 if scale is None else scale, _with_causal(bias, causal, q, k)
    q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q * scale, k, v))  # [B, h, S, d]

    def attend(q, bias):
        return paddle.matmul(F.softmax(_masked(paddle.matmul(q, k, transpose_y=True), bias, False), axis=-1), v)

    batch, heads, queries, _ = q.shape
    rows = max(1, _MAX_SCORES // max(1, batch * heads * k.shape[2]))
    if rows >= queries or not paddle.in_dynamic_mode():  # a static graph cannot count its blocks
        return attend(q, bias).transpose([0, 2, 1, 3])
    blocks = [slice(start, start + rows) for start in range(0, queries, rows)]
    outputs = [attend(q[:, :, some], None if bias is None else bias[:, :, some]) for some in blocks]
    return paddle.concat(outputs, axis=2).transpose([0, 2, 1, 3])


# What Paddle's kernels for GPUs take, read from their sources (2.6.2 to 3.3.1). Neither gives a bias its gradient.


def _one_dtype(q, k, v):
    return q.dtype == k.dtype == v.dtype


def _flash_accepts(q, k, v, bias=None, causal=False, scale=None):
    """16 bits, heads of a multiple of 8 up to 256, and a square of scores if causal."""
    in_16_bits = _one_dtype(q, k, v) and q.dtype in _16_BITS
    square = not causal or q.shape[1] == k.shape[1]
    return in_16_bits and q.shape[-1] <= 256 and q.shape[-1] % 8 == 0 and square and not tracked(bias)


def _flash(q, k, v, bias=None, causal=False, scale=None):
    """Paddle's flash attention, which takes a bias of the batch's size and q's dtype, or ``causal``, not both."""
    if bias is not None:
        bias, causal = _with_causal(bias, causal, q, k).astype(q.dtype), False
        bias = bias.expand([shape_of(q)[0], *bias.shape[1:]])
    return F.scaled_dot_product_attention(_scaled(q, scale), k, v, attn_mask=bias, is_causal=causal)


def _scaled(q, scale):
    """``q`` for a kernel that multiplies the scores by ``d ** -0.5``."""
    default = q.shape[-1] ** -0.5
    return q if scale is None or scale == default else q * (scale / default)


def _flash_3_accepts(q, k, v, bias=None, causal=False, scale=None):
    return bias is None and _flash_accepts(q, k, v, bias, causal, scale)


def _flash_3(q, k, v, bias=None, causal=False, scale=None):
    """Flash attention 3, for Hopper, which Paddle computes with while a flag says so."""
    with flags(FLAGS_flash_attn_version=3):
        return F.flash_attention.flash_attention(_scaled(q, scale), k, v, causal=causal)[0]


def _memory_efficient_accepts(q, k, v, bias=None, causal=False, scale=None):
    """Any width; of a bias, rows that are aligned."""
    square = not causal or q.shape[1] == k.shape[1]
    bias_fits = bias is None or (paddle.in_dynamic_mode() and bias.shape[-1] % 8 == 0 and not tracked(bias))
    return _one_dtype(q, k, v) and square and bias_fits


def _memory_efficient(q, k, v, bias=None, causal=False, scale=None):
    """Paddle's memory-efficient attention, whose bias has one row and head for all, or every one."""
    if bias is not None:
        bias, causal = _with_causal(bias, causal, q, k).astype(q.dtype), False
        if bias.shape[:2] != [1, 1]:
            bias = bias.expand([q.shape[0], q.shape[2], *bias.shape[2:]])
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    return memory_efficient_attention(q, k, v, bias, causal, scale, training=tracked(q, k, v))


def _kind(q, k, v, bias=None, causal=False, scale=None):
    of_heads = "" if bias is None else ", bias" if bias.shape[1] == 1 else ", bias of heads"
    return f"heads of {q.shape[-1]}{of_heads}" + ", causal" * causal


def _sample(tensor, q, k, v, bias=None, causal=False, scale=None):
    heads, width, tokens = 4, q.shape[-1], 128
    if bias is not None:
        bias = tensor(1, heads if bias.shape[1] > 1 else 1, tokens, tokens).detach()
    return [*(tensor(2, tokens, heads, width) for _ in range(3)), bias, causal, scale]


_PROOF = proving.Proof(_kind, _sample, timed=False)


def _pays_on_tiles(q, k, v, bias=None, causal=False, scale=None):
    return kernels.pays_on_tiles(q.shape[1], k.shape[1], k.shape[3])


@operation(
    native(
        partial(kernels.attention, kernel="amx_attention"),
        "amx",
        ("amx",),
        precisions=("high", "strassen", "medium"),
        accepts=kernels.accepts,
        pays=_pays_on_tiles,
    ),
    native(kernels.attention, accepts=kernels.accepts),
    Implementation(
        "flash 3",
        "paddle",
        _flash_3,
        "gpu",
        features=("flash_attention_3",),
        graphs=False,
        accepts=_flash_3_accepts,
        proof=_PROOF._replace(timed=True),
    ),
    Implementation(
        "flash", "paddle", _flash, "gpu", features=("flash_attention",), accepts=_flash_accepts, proof=_PROOF
    ),
    Implementation(
        "memory-efficient",
        "paddle",
        _memory_efficient,
        "gpu",
        features=("cuda",),
        accepts=_memory_efficient_accepts,
        proof=_PROOF,
    ),
    Implementation("heads split", "paddle", _heads_split, "cpu"),
    Implementation("in blocks", "paddle", _in_blocks),
    deciding=4,
)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention: ``softmax(scale q k^T + bias) v``.

    Args:
        q: queries ``[B, Sq, h, d]``.
        k, v: keys and values ``[B, Sk, h, d]``.
        bias: added to the scaled scores, ``[1 or B, 1 or h, Sq, Sk]``.
        causal: whether a query sees only keys of its own index and before.
        scale: factor on the scores; default ``d ** -0.5``. T5 passes 1.

    Returns:
        ``[B, Sq, h, d]``, dtype of ``q``.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))  # [B, h, S, d]
    scores = _masked(paddle.matmul(q * scale, k, transpose_y=True), bias, causal)
    return paddle.matmul(F.softmax(scores, axis=-1), v).transpose([0, 2, 1, 3])


def _joined(*tensors):
    """Queries, keys and values, each as the pieces that there are."""
    return [[x for x in pair if x is not None] for pair in zip(tensors[:3], tensors[3:])]


def _in_pieces(*tensors, kernel="attention"):
    return kernels.in_pieces(*_joined(*tensors), kernel=kernel)


def _joint_pays_on_tiles(*tensors):
    q, k = tensors[:2]
    return kernels.pays_on_tiles(q.shape[1], k.shape[1] + tensors[4].shape[1], k.shape[3])


@operation(
    native(
        partial(_in_pieces, kernel="amx_attention"),
        "amx",
        ("amx",),
        precisions=("high", "strassen", "medium"),
        pays=_joint_pays_on_tiles,
    ),
    native(_in_pieces),
    deciding=6,
)
def _joint_attention(q, k, v, text_q, text_k, text_v, bias=None):
    """The outputs for ``q`` and, if it is there, ``text_q``."""
    joined = [paddle.concat(pieces, axis=1) for pieces in _joined(q, k, v, text_q, text_k, text_v)]
    joint = attention(joined[0], joined[1], joined[2], bias)
    images = shape_of(q)[1]
    return [joint] if text_q is None else [joint[:, :images], joint[:, images:]]


def joint_attention(
    image: tuple[Tensor, Tensor, Tensor], text: tuple[Tensor | None, Tensor, Tensor], bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """One softmax over the tokens of two streams, image first, without concatenating them where kernels allow.

    Args:
        image: q, k, v, each ``[B, N, h, d]``.
        text: q, k, v, each ``[B, L, h, d]``; q may be None, where only the image asks.
        bias: added to the scaled scores, ``[1 or B, 1 or h, queries, N + L]``.

    Returns:
        ``[B, N, h, d]``, and ``[B, L, h, d]`` or None.
    """
    joint = _joint_attention if bias is None else partial(reference(_joint_attention), bias=bias)
    outputs = joint(*image, *text)
    return outputs[0], outputs[1] if len(outputs) == 2 else None


def causal_bias(rows: int, columns: int, dtype: paddle.dtype) -> Tensor:
    """``[rows, columns]``: 0 where column <= row, a very negative finite number elsewhere."""
    return paddle.triu(paddle.full([rows, columns], _lowest(dtype), dtype="float32"), diagonal=1).astype(dtype)


def mask_bias(mask: Tensor, dtype: paddle.dtype) -> Tensor:
    """A boolean or whole-numbered ``mask`` as a bias of its shape: 0 where it is true, a very negative finite number
    elsewhere. Floats are a bias already."""
    if paddle.is_floating_point(mask):
        return mask.astype(dtype)
    return ((mask.astype("float32") == 0).astype("float32") * _lowest(dtype)).astype(dtype)


def _with_causal(bias, causal, q, k):
    """``bias``, which may be None, with what ``causal`` adds to it."""
    if not causal:
        return bias
    queries, keys = (cast("Any", shape_of(x)[1]) for x in (q, k))
    hidden = causal_bias(queries, keys, q.dtype)
    return hidden.unsqueeze([0, 1]) if bias is None else bias + hidden


def _lowest(dtype):
    # finfo.min of fp16 would become -inf once a bias is added to it, and a row of -inf is NaN after softmax
    return -1e4 if dtype == paddle.float16 else -1e30


def _masked(scores, bias, causal):
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores + causal_bias(scores.shape[-2], scores.shape[-1], scores.dtype)
    return scores
