"""Softmax attention on ``[B, S, h, d]``: one signature, several ways of computing it.

``reference`` is the definition, ``heads_split`` the fast way on CPU within Paddle, ``fused`` Paddle's flash kernel for
GPU, and :mod:`.native` has a flash kernel for CPU. ``attention`` chooses by where the tensors are; nothing else in the
package chooses a kernel.
"""

import paddle
import paddle.nn.functional as F

from . import native, onednn
from .native import interface as kernels
from .shapes import shape_of


def attention_reference(q, k, v, bias=None, causal=False, scale=None):
    """The definition: ``softmax(scale q k^T + bias) v`` on heads moved to the batch axis.

    Args and shapes: see :func:`attention`.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))  # [B, h, S, d]
    scores = _masked(paddle.matmul(q * scale, k, transpose_y=True), bias, causal)
    return paddle.matmul(F.softmax(scores, axis=-1), v).transpose([0, 2, 1, 3])


def attention_heads_split(q, k, v, bias=None, causal=False, scale=None):
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


def _softmax(scores):
    """Softmax over the last axis; may use up ``scores``."""
    if onednn.usable_forward(scores):
        return onednn.softmax_(scores)
    return F.softmax(scores, axis=-1)


def attention_fused(q, k, v, bias=None, causal=False, scale=None):
    """Paddle's ``scaled_dot_product_attention`` (flash attention on GPU)."""
    default = q.shape[-1] ** -0.5
    if scale is not None and scale != default:
        q = q * (scale / default)
    if bias is not None and causal:
        bias, causal = bias + causal_bias(q.shape[1], k.shape[1], bias.dtype), False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)


def attention(q, k, v, bias=None, causal=False, scale=None):
    """Softmax attention.

    Args:
        q (Tensor [B, Sq, h, d]), k, v (Tensor [B, Sk, h, d]): queries, keys and values.
        bias (Tensor [1 or B, 1 or h, Sq, Sk], optional): added to the scaled scores.
        causal (bool): a query sees only keys of its own index and before. Default False.
        scale (float, optional): factor on the scores. Default ``d ** -0.5``; T5 passes 1.

    Returns:
        Tensor [B, Sq, h, d], dtype of ``q``.
    """
    if native.usable(q, k, v, bias) and not causal and (bias is None or kernels.takes_bias(bias, q, k, v)):
        return kernels.attention([q], [k], [v], q.shape[-1] ** -0.5 if scale is None else scale, bias)[0]
    return (attention_fused if _on_gpu(q) else attention_heads_split)(q, k, v, bias, causal, scale)


def joint_attention(image, text):
    """One softmax over the tokens of two streams, image first, without concatenating them where kernels allow.

    Args:
        image, text (tuple of three Tensors): q, k, v, each [B, N, h, d] and [B, L, h, d]; q of the text may be None,
            where only the image asks.

    Returns:
        (Tensor [B, N, h, d], Tensor [B, L, h, d] or None).
    """
    queries, keys, values = ([x for x in pair if x is not None] for pair in zip(image, text))
    if native.usable(*image, *text):
        outputs = kernels.attention(queries, keys, values, image[0].shape[-1] ** -0.5)
    else:
        joint = attention(*(paddle.concat(pieces, axis=1) for pieces in (queries, keys, values)))
        images = shape_of(image[0])[1]
        outputs = [joint] if text[0] is None else [joint[:, :images], joint[:, images:]]
    return outputs[0], outputs[1] if len(queries) == 2 else None


def causal_bias(rows, columns, dtype):
    """``[rows, columns]``: 0 where column <= row, a very negative finite number elsewhere."""
    # finfo.min of fp16 would become -inf once a bias is added to it, and a row of -inf is NaN after softmax
    lowest = -1e4 if dtype == paddle.float16 else -1e30
    return paddle.triu(paddle.full([rows, columns], lowest, dtype="float32"), diagonal=1).astype(dtype)


def _on_gpu(x):
    if paddle.in_dynamic_mode():
        return x.place.is_gpu_place()
    return paddle.get_device().startswith("gpu")  # a static graph's tensors have no place yet


def _masked(scores, bias, causal):
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores + causal_bias(scores.shape[-2], scores.shape[-1], scores.dtype)
    return scores
