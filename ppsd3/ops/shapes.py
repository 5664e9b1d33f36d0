"""Sizes and dtypes of tensors, for code that also runs in static graphs, where sizes are open."""

from __future__ import annotations

from typing import Any

import paddle


def shape_of(x):
    """The sizes of ``x``: ints, or in a static graph an int32 tensor."""
    return x.shape if paddle.in_dynamic_mode() else paddle.shape(x)


def sizes_of(x: paddle.Tensor) -> list[Any]:
    """The sizes of ``x``, each an int where it is known, or in a static graph a tensor of one int where it is open."""
    return [size if size >= 0 else paddle.shape(x)[axis] for axis, size in enumerate(x.shape)]


def cast(x: paddle.Tensor, dtype: Any) -> paddle.Tensor:
    """``x`` in ``dtype``, without a copy if it is so already."""
    return x if x.dtype == dtype else x.astype(dtype)


def repeat_rows(x: paddle.Tensor, n: int) -> paddle.Tensor:
    """Each row of ``x [B, ...]`` ``n`` times in a row: p0, p0, p1, p1. Paddle 2.6 has no ``repeat_interleave`` for
    float16 on GPUs."""
    return x if n == 1 else paddle.stack([x] * n, axis=1).flatten(0, 1)


def tracked(*tensors):
    """Whether a gradient of what is computed from ``tensors`` (entries may be None) is recorded."""
    return paddle.is_grad_enabled() and not all(x is None or x.stop_gradient for x in tensors)
