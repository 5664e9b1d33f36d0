"""The kernels as functions of Paddle tensors, each with its gradient.

A function whose inputs need no gradient calls the kernel and nothing else; otherwise a ``PyLayer`` records it. All
tensors are float32 on CPU (:func:`ppsd3.ops.native.usable`).
"""

import ctypes

import paddle
from paddle.autograd import PyLayer

from ..shapes import tracked as _tracked
from . import lib
from .products import dense as _dense, has_amx, pointer as _pointer, precision, product as _product

_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
SIGNATURES = {  # p pointer, n size, f float
    "add_bias": "ppnn",
    "column_sum": "ppnn",
    "gelu": "pppnn",
    "gelu_backward": "ppppnn",
    "layer_norm": "ppppppnnnf",
    "layer_norm_backward": "ppppppppnnn",
    "gated_residual": "ppppnnn",
    "gated_residual_backward": "pppppnnn",
    "rms_norm": "pppnnf",
    "rms_norm_backward": "pppppnnf",
    "attention": "ppppppfpnn",
    "attention_backward": "ppppppppppf",
    "set_runtime": "pp",
}
OPTIONAL_SIGNATURES = {"amx_attention": "ppppppfpnn"}  # only where the CPU has the instructions


def declare(library, signatures):
    """Sets the argument types of those functions of ``library`` that ``signatures`` names."""
    types = {"p": _POINTER, "n": _SIZE, "f": _FLOAT}
    for name, signature in signatures.items():
        function = getattr(library, "ppsd3_" + name)
        function.argtypes, function.restype = [types[c] for c in signature], ctypes.c_int32


def _rows(x):
    width = x.shape[-1]
    return x.size // width, width


# Linear, with or without GELU after it.


def linear(x, weight, bias):
    """``x W^T + b``, or without ``b``; bias and its gradient (a column sum) by kernels."""
    if bias is None:
        return _PlainLinear.apply(x, weight) if _tracked(x, weight) else _product(x, weight, transpose_y=True)
    if _tracked(x, weight, bias):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, transpose_y=True, bias=_dense(bias))


def _product_gradients(x, weight, dy, ctx):
    """Gradients of ``x W^T`` by x and W, None for what needs none; one product each over all rows."""
    needs_x, needs_weight = ctx.needs
    dx = _product(dy, weight) if needs_x else None
    if not needs_weight:
        return dx, None
    flat_dy, flat_x = dy.reshape([-1, dy.shape[-1]]), x.reshape([-1, x.shape[-1]])
    return dx, _product(flat_dy, flat_x, transpose_x=True)


class _PlainLinear(PyLayer):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.needs = (not x.stop_gradient, not weight.stop_gradient)
        ctx.save_for_backward(x, weight)
        return _product(x, weight, transpose_y=True)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensor()
        return _product_gradients(x, weight, _dense(dy), ctx)


class _Linear(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.needs = (not x.stop_gradient, not weight.stop_gradient)
        ctx.needs_bias = not bias.stop_gradient
        ctx.save_for_backward(x, weight)
        return _product(x, weight, transpose_y=True, bias=_dense(bias))

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensor()
        dy, dbias = _dense(dy), None
        if ctx.needs_bias:
            dbias = paddle.empty([dy.shape[-1]], dtype="float32")
            lib().ppsd3_column_sum(dy.data_ptr(), dbias.data_ptr(), *_rows(dy))
        return (*_product_gradients(x, weight, dy, ctx), dbias)


def linear_gelu(x, weight, bias):
    """``gelu(x W^T + b)``, tanh-approximated; bias and activation in one pass."""
    if _tracked(x, weight, bias):
        return _LinearGelu.apply(x, weight, bias)
    return _product(x, weight, transpose_y=True, bias=_dense(bias), gelu_after=True)


class _LinearGelu(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.needs = (not x.stop_gradient, not weight.stop_gradient)
        ctx.needs_bias = not bias.stop_gradient
        y, bias = _product(x, weight, transpose_y=True), _dense(bias)
        out = paddle.empty_like(y)
        lib().ppsd3_gelu(y.data_ptr(), bias.data_ptr(), out.data_ptr(), *_rows(y))
        ctx.save_for_backward(x, weight, y)  # y now includes the bias
        return out

    @staticmethod
    def backward(ctx, dout):
        x, weight, y = ctx.saved_tensor()
        dout, dy = _dense(dout), paddle.empty_like(y)
        dbias = paddle.empty([y.shape[-1]], dtype="float32") if ctx.needs_bias else None
        lib().ppsd3_gelu_backward(*map(_pointer, (y, dout, dy, dbias)), *_rows(y))
        return (*_product_gradients(x, weight, dy, ctx), dbias)


def gelu(x):
    """tanh-approximated GELU."""
    return _Gelu.apply(x) if _tracked(x) else _gelu(_dense(x))


def _gelu(x):
    out = paddle.empty_like(x)
    lib().ppsd3_gelu(x.data_ptr(), None, out.data_ptr(), *_rows(x))
    return out


class _Gelu(PyLayer):
    @staticmethod
    def forward(ctx, x):
        x = _dense(x)
        ctx.save_for_backward(x)
        return _gelu(x)

    @staticmethod
    def backward(ctx, dout):
        (x,) = ctx.saved_tensor()
        dout, dx = _dense(dout), paddle.empty_like(x)
        lib().ppsd3_gelu_backward(*map(_pointer, (x, dout, dx, None)), *_rows(x))
        return dx


# Norms and modulation.


def layer_norm(x, epsilon):
    """Layer norm without weight or bias."""
    if _tracked(x):
        return _LayerNorm.apply(x, epsilon)
    return _layer_norm(_dense(x), None, None, epsilon)[0]


def layer_norm_modulate(x, shift, scale, epsilon):
    """``layer_norm(x) * (1 + scale) + shift`` in one pass."""
    if _tracked(x, shift, scale):
        return _LayerNormModulate.apply(x, shift, scale, epsilon)
    return _layer_norm(_dense(x), _dense(shift), _dense(scale), epsilon)[0]


def _items(x, modulation):
    """Batch items, tokens of each, width; without modulation all rows are one item's."""
    rows, width = _rows(x)
    items = 1 if modulation is None else modulation.size // width
    return items, rows // items, width


def _layer_norm(x, shift, scale, epsilon, keep=False):
    out = paddle.empty_like(x)
    mean, rstd = (paddle.empty(x.shape[:-1], dtype="float32") if keep else None for _ in range(2))
    lib().ppsd3_layer_norm(*map(_pointer, (x, shift, scale, out, mean, rstd)), *_items(x, scale), epsilon)
    return out, mean, rstd


def _layer_norm_backward(x, scale, mean, rstd, dout):
    dx = paddle.empty_like(x)
    dshift, dscale = (None if scale is None else paddle.empty_like(scale) for _ in range(2))
    pointers = map(_pointer, (x, scale, mean, rstd, dout, dx, dshift, dscale))
    lib().ppsd3_layer_norm_backward(*pointers, *_items(x, scale))
    return dx, dshift, dscale


class _LayerNorm(PyLayer):
    @staticmethod
    def forward(ctx, x, epsilon):
        x = _dense(x)
        out, mean, rstd = _layer_norm(x, None, None, epsilon, keep=True)
        ctx.save_for_backward(x, mean, rstd)
        return out

    @staticmethod
    def backward(ctx, dout):
        x, mean, rstd = ctx.saved_tensor()
        return _layer_norm_backward(x, None, mean, rstd, _dense(dout))[0]


class _LayerNormModulate(PyLayer):
    @staticmethod
    def forward(ctx, x, shift, scale, epsilon):
        ctx.wanted = [not t.stop_gradient for t in (x, shift, scale)]
        x, shift, scale = _dense(x), _dense(shift), _dense(scale)
        out, mean, rstd = _layer_norm(x, shift, scale, epsilon, keep=True)
        ctx.save_for_backward(x, scale, mean, rstd)
        return out

    @staticmethod
    def backward(ctx, dout):
        gradients = _layer_norm_backward(*ctx.saved_tensor(), _dense(dout))
        return tuple(g if wanted else None for g, wanted in zip(gradients, ctx.wanted))


def gated_residual(residual, gate, x):
    """``residual + gate * x`` in one pass."""
    if _tracked(residual, gate, x):
        return _GatedResidual.apply(residual, gate, x)
    return _gated_residual(_dense(residual), _dense(gate), _dense(x))


def _gated_residual(residual, gate, x):
    out = paddle.empty_like(x)
    lib().ppsd3_gated_residual(*map(_pointer, (residual, gate, x, out)), *_items(x, gate))
    return out


class _GatedResidual(PyLayer):
    @staticmethod
    def forward(ctx, residual, gate, x):
        ctx.wanted = [not t.stop_gradient for t in (residual, gate, x)]
        residual, gate, x = _dense(residual), _dense(gate), _dense(x)
        ctx.save_for_backward(gate, x)
        return _gated_residual(residual, gate, x)

    @staticmethod
    def backward(ctx, dout):
        gate, x = ctx.saved_tensor()
        dout, dx, dgate = _dense(dout), paddle.empty_like(x), paddle.empty_like(gate)
        lib().ppsd3_gated_residual_backward(*map(_pointer, (gate, x, dout, dx, dgate)), *_items(x, gate))
        return tuple(g if wanted else None for g, wanted in zip((dout, dgate, dx), ctx.wanted))


def rms_norm(x, weight, epsilon):
    """``x / sqrt(mean(x^2) + epsilon) * weight`` over the last axis."""
    if _tracked(x, weight):
        return _RMSNorm.apply(x, weight, epsilon)
    return _rms_norm(_dense(x), _dense(weight), epsilon)


def _rms_norm(x, weight, epsilon):
    out = paddle.empty_like(x)
    lib().ppsd3_rms_norm(*map(_pointer, (x, weight, out)), *_rows(x), epsilon)
    return out


class _RMSNorm(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, epsilon):
        ctx.wanted, ctx.epsilon = (not x.stop_gradient, not weight.stop_gradient), epsilon
        x, weight = _dense(x), _dense(weight)
        ctx.save_for_backward(x, weight)
        return _rms_norm(x, weight, epsilon)

    @staticmethod
    def backward(ctx, dout):
        x, weight = ctx.saved_tensor()
        dout, dx, dweight = _dense(dout), paddle.empty_like(x), paddle.empty_like(weight)
        lib().ppsd3_rms_norm_backward(*map(_pointer, (x, weight, dout, dx, dweight)), *_rows(x), ctx.epsilon)
        return tuple(g if wanted else None for g, wanted in zip((dx, dweight), ctx.wanted))


# Attention, over one or two pieces of the token axis.


class _Shape(ctypes.Structure):
    _fields_ = [(name, _SIZE) for name in ("batch", "heads", "dim", "queries", "keys")]


class _Tokens(ctypes.Structure):
    """The pieces, along the token axis, of one [B, S, h, d] operand."""

    _fields_ = [("base", _POINTER * 2), ("rows", _SIZE * 2), ("stride", _SIZE * 2)]


def _tokens(pieces):
    width = pieces[0].shape[2] * pieces[0].shape[3]
    tokens = _Tokens()
    for i, x in enumerate(pieces):
        tokens.base[i], tokens.rows[i], tokens.stride[i] = x.data_ptr(), x.shape[1], width
    return ctypes.byref(tokens)


def _shape(q, k):
    batch, _, heads, dim = q[0].shape
    return ctypes.byref(_Shape(batch, heads, dim, sum(x.shape[1] for x in q), sum(x.shape[1] for x in k)))


def attention(q, k, v, scale, bias=None):
    """``softmax(scale q k^T + bias) v`` over tokens that come in pieces.

    Args:
        q, k, v (sequence of 1 or 2 Tensor [B, S_i, h, d]): pieces of the token axis, in order.
        scale (float): factor on the scores.
        bias (Tensor [1 or B, 1 or h, Sq, Sk], optional): only where no gradient is wanted.

    Returns:
        tuple of Tensor [B, S_i, h, d], one per piece of ``q``.
    """
    if _tracked(*q, *k, *v):
        outputs = _Attention.apply(scale, len(q), len(k), *q, *k, *v)
        return outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return _attention(*([_dense(x) for x in pieces] for pieces in (q, k, v)), scale, None, bias)


def takes_bias(bias, *tensors):
    """Whether attention with ``bias`` has a kernel: no gradient passes, only batch and heads are broadcast."""
    return not _tracked(bias, *tensors) and bias.shape[2:] == [tensors[0].shape[1], tensors[1].shape[1]]


def _attention(q, k, v, scale, lse, bias=None):
    out = tuple(paddle.empty_like(x) for x in q)
    added, steps = None, (0, 0)
    if bias is not None:
        bias = _dense(bias)
        batch, heads, rows, columns = bias.shape
        steps = (0 if batch == 1 else heads * rows * columns), (0 if heads == 1 else rows * columns)
        added = bias.data_ptr()
    operands = map(_tokens, (q, k, v, out))
    kernel = lib().ppsd3_amx_attention if _on_tiles(q, k) else lib().ppsd3_attention
    kernel(_shape(q, k), *operands, _pointer(lse), scale, added, *steps)
    return out


def _on_tiles(q, k):
    """Whether AMX is faster: where tiles are filled and keys are many enough to be worth their packing."""
    keys, dim = sum(x.shape[1] for x in k), k[0].shape[3]
    return precision() != "highest" and has_amx() and keys >= 192 and dim >= 32 and q[0].shape[1] >= 32


class _Attention(PyLayer):
    @staticmethod
    def forward(ctx, scale, q_pieces, k_pieces, *tensors):
        ctx.scale, ctx.pieces, ctx.wanted = scale, (q_pieces, k_pieces), [not x.stop_gradient for x in tensors]
        tensors = [_dense(x) for x in tensors]
        q, k, v, _ = _pieces(tensors, q_pieces, k_pieces)
        batch, _, heads, _ = q[0].shape
        lse = paddle.empty([batch, heads, sum(x.shape[1] for x in q)], dtype="float32")
        out = _attention(q, k, v, scale, lse)
        ctx.save_for_backward(*tensors, *out, lse)
        return out if len(out) > 1 else out[0]

    @staticmethod
    def backward(ctx, *dout):
        *tensors, lse = ctx.saved_tensor()
        q, k, v, out = _pieces(tensors, *ctx.pieces)
        gradients = [paddle.empty_like(x) for x in (*q, *k, *v)]
        dout, dqkv = [_dense(x) for x in dout], _pieces(gradients, *ctx.pieces)[:3]
        operands = map(_tokens, (q, k, v, out, dout))
        lib().ppsd3_attention_backward(_shape(q, k), *operands, lse.data_ptr(), *map(_tokens, dqkv), ctx.scale)
        return tuple(g if wanted else None for g, wanted in zip(gradients, ctx.wanted))


def _pieces(tensors, q_pieces, k_pieces):
    """A flat list -> q, k, v and what follows."""
    ends = [q_pieces, q_pieces + k_pieces, q_pieces + 2 * k_pieces]
    starts = [0, *ends]
    return [list(tensors[a:b]) for a, b in zip(starts, [*ends, None])]
