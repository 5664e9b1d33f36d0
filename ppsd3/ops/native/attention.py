"""Attention over one or two pieces of the token axis: float32 tensors on the CPU, with the gradient."""

import ctypes

import paddle

from ..gradients import differentiable
from ..shapes import tracked
from . import lib
from .prototypes import structure
from .tensors import dense, pointer

_Shape, _Tokens = structure("Shape"), structure("Tokens")


def _tokens(pieces):
    width = pieces[0].shape[2] * pieces[0].shape[3]
    tokens = _Tokens()
    for i, x in enumerate(pieces):
        tokens.base[i], tokens.rows[i], tokens.stride[i] = x.data_ptr(), x.shape[1], width
    return ctypes.byref(tokens)


def _shape(q, k):
    batch, _, heads, dim = q[0].shape
    return ctypes.byref(_Shape(batch, heads, dim, sum(x.shape[1] for x in q), sum(x.shape[1] for x in k)))


def attention(q, k, v, bias=None, causal=False, scale=None, kernel="attention"):
    """:func:`ppsd3.ops.attention` without ``causal``; with ``bias`` only where no gradient is wanted."""
    return in_pieces([q], [k], [v], scale, bias, kernel)[0]


def accepts(q, k, v, bias=None, causal=False, scale=None):
    """Whether :func:`attention` computes this: of a bias, only batch and heads may be broadcast."""
    if bias is None:
        return not causal
    return not causal and not tracked(q, k, v, bias) and bias.shape[2:] == [q.shape[1], k.shape[1]]


def pays_on_tiles(queries, keys, dim):
    """Whether AMX is faster: where tiles are filled and keys are many enough to be worth their packing."""
    return keys >= 192 and dim >= 32 and queries >= 32


def in_pieces(q, k, v, scale=None, bias=None, kernel="attention"):
    """``softmax(scale q k^T + bias) v`` over tokens that come in pieces.

    Args:
        q, k, v: 1 or 2 Tensor [B, S_i, h, d]: pieces of the token axis, in order.
        scale: factor on the scores; default ``d ** -0.5``.
        bias: as :func:`attention` takes it.
        kernel: name of the native function.

    Returns:
        Tensors [B, S_i, h, d], one per piece of ``q``.
    """
    scale = q[0].shape[-1] ** -0.5 if scale is None else scale
    outputs = _attention(*q, *k, *v, counts=(len(q), len(k)), kernel=kernel, scale=scale, bias=bias)
    return outputs if isinstance(outputs, (tuple, list)) else (outputs,)


def _forward(keep, *tensors, counts, kernel, scale, bias):
    q, k, v, _ = _pieces(tensors, *counts)
    batch, _, heads, _ = q[0].shape
    out = [paddle.empty_like(x) for x in q]
    lse = paddle.empty([batch, heads, sum(x.shape[1] for x in q)], dtype="float32") if keep else None
    added, steps = None, (0, 0)
    if bias is not None:
        bias = dense(bias)
        batch, heads, rows, columns = bias.shape
        steps = (0 if batch == 1 else heads * rows * columns), (0 if heads == 1 else rows * columns)
        added = bias.data_ptr()
    operands = map(_tokens, (q, k, v, out))
    getattr(lib(), "ppsd3_" + kernel)(_shape(q, k), *operands, pointer(lse), scale, added, *steps)
    return tuple(out) if len(out) > 1 else out[0], (*tensors, *out, lse)


def _backward(dout, wanted, *kept, counts, kernel, scale, bias):
    *tensors, lse = kept
    q, k, v, out = _pieces(tensors, *counts)
    gradients = [paddle.empty_like(x) for x in (*q, *k, *v)]
    operands = map(_tokens, (q, k, v, out, dout if isinstance(dout, list) else [dout]))
    dqkv = map(_tokens, _pieces(gradients, *counts)[:3])
    lib().ppsd3_attention_backward(_shape(q, k), *operands, lse.data_ptr(), *dqkv, scale)
    return gradients


_attention = differentiable(_forward, _backward)


def _pieces(tensors, q_pieces, k_pieces):
    """A flat list -> q, k, v and what follows."""
    ends = [q_pieces, q_pieces + k_pieces, q_pieces + 2 * k_pieces]
    starts = [0, *ends]
    return [list(tensors[a:b]) for a, b in zip(starts, [*ends, None])]
