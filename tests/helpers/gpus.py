"""A GPU that is none: the table of kernels takes the CPU for a card of a given capability, and Paddle's functions for
GPUs are stand-ins that assert what the kernels assert (read from their sources, 2.6.2 to 3.3.1), then compute on the
CPU.

The CPU has hardly a kernel for 16 bits. A :class:`StandInGPU` with ``computes_16_bits_in="float32"`` therefore has
kernels for 16 bits take float32 tensors: whole networks then run through flash attention.
"""

import sys

import paddle
from paddle.nn import functional as F

from ppsd3.ops import attention, dispatch, proving
from ppsd3.utils import gpu

ATTENTION = sys.modules["ppsd3.ops.attention"]  # which the function of that name hides in the package
AMPERE, TURING, VOLTA, HOPPER = (8, 0), (7, 5), (7, 0), (9, 0)


class Refused(RuntimeError):
    """What the kernel on a GPU would raise."""


def require(fact, message):
    if not fact:
        raise Refused(message)


class StandInGPU:
    """A context manager; ``calls`` counts the calls of Paddle's functions for GPUs, without those of trials."""

    def __init__(self, monkeypatch, tmp_path, capability=AMPERE, computes_16_bits_in=None, name="Stand-in 40GB"):
        self.calls, self.capability = [], capability
        self._16_bits = (paddle.float16, paddle.bfloat16)
        if computes_16_bits_in is not None:
            self._16_bits = (getattr(paddle, computes_16_bits_in),)
        self._patch, self._tried = monkeypatch, proving._compared
        self.card = gpu.Card(0, name, capability, 40 * 2**30)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def __enter__(self):
        kind_of, patch = dispatch.kind_of, self._patch.setattr
        patch(gpu, "cards", lambda: [self.card])
        patch(gpu, "driver", lambda: ("535.104.05", (12, 2)))
        patch(dispatch, "kind_of", lambda tensors: ("gpu", kind_of(tensors)[1]))
        patch(dispatch, "_device", lambda: "gpu")
        patch(ATTENTION, "_16_BITS", self._16_bits)
        patch(F, "scaled_dot_product_attention", self._flash)
        patch(ATTENTION, "memory_efficient_attention", self._memory_efficient)
        row = dispatch.TABLE["attention"]  # the CPU has no definition in 16 bits
        patch(
            row, "implementations", (*row.implementations[:-1], row.implementations[-1]._replace(function=in_float32))
        )
        patch(proving, "_compared", self._without_counting)
        self.forget()
        return self

    def __exit__(self, *_):
        self._patch.undo()
        self.forget()

    @staticmethod
    def flags(patch, **values):
        """Paddle's flags of GPUs, which a Paddle for CPUs does not have; the dict that holds them."""
        get, put = paddle.get_flags, paddle.set_flags
        patch.setattr(paddle, "get_flags", lambda names: {n: values[n] for n in names} if known(names) else get(names))
        patch.setattr(paddle, "set_flags", lambda new: values.update(new) if known(new) else put(new))

        def known(names):
            return values.keys() >= set(names)

        return values

    @staticmethod
    def forget():
        """As a new process would start."""
        proving._known.cache_clear()
        for row in dispatch.TABLE.values():
            row._candidates = {}

    def _without_counting(self, *arguments):
        before = len(self.calls)
        try:
            return self._tried(*arguments)
        finally:
            del self.calls[before:]

    def _flash(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, training=True, name=None):
        self.calls.append("flash")
        (batch, queries, heads, width), keys = query.shape, key.shape[1]
        require(self.capability >= (8, 0), "FlashAttention is unsupported, please check the GPU compability")
        require(query.dtype in self._16_bits, "kernel `flash_attn` is not registered for this dtype")
        require(query.dtype == key.dtype == value.dtype, "q, k and v differ in dtype")
        require(width <= 256 and width % 8 == 0, "head_size")
        require(not (is_causal and attn_mask is not None), "When attn_mask is set, causal can not be true.")
        require(not is_causal or queries == keys, "causal attention of other lengths")
        if attn_mask is not None:
            shape = attn_mask.shape
            require(attn_mask.dtype == query.dtype, "attn_mask is expected to have the same data type with q.")
            require(len(shape) == 4 and shape[0] == batch, "`mask_dims[0] == batch_size` check failed")
            require(shape[1] in (1, heads) and shape[2] in (1, queries) and shape[3] == keys, "mask_dims")
            require(attn_mask.stop_gradient, "the kernel has no gradient for its mask")
        return in_float32(query, key, value, attn_mask, is_causal)

    def _memory_efficient(self, q, k, v, bias, causal, scale, training):
        self.calls.append("memory-efficient")
        require(self.capability >= (5, 0) and q.dtype == k.dtype == v.dtype, "dtypes")
        require(q.dtype != paddle.bfloat16 or self.capability >= (8, 0), "the kernel should not be launched")
        require(training or q.stop_gradient or not paddle.is_grad_enabled(), "no logsumexp for the gradient")
        require(not causal or bias is None, "causal with a bias")
        if bias is not None:
            every = [q.shape[0], q.shape[2]]
            require(bias.shape[:2] in ([1, 1], every), "The first dim of attn_bias should be 1 or batch size.")
            require(bias.shape[2:] == [q.shape[1], k.shape[1]] and bias.dtype == q.dtype, "attn_bias")
            require(k.shape[1] % 8 == 0, "attn_bias is not correctly aligned")
        return in_float32(q, k, v, bias, causal, scale)


def in_float32(q, k, v, bias=None, causal=False, scale=None):
    definition = dispatch.reference(attention)
    arguments = [None if x is None else x.astype("float32") for x in (q, k, v, bias)]
    return definition(*arguments, causal, scale).astype(q.dtype)
