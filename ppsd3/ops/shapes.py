"""Sizes and kinds of tensors, for code that also runs in static graphs, where sizes are open."""

from __future__ import annotations

from typing import Any

import paddle


def shape_of(x):
    """The sizes of ``x``: ints, or in a static graph an int32 tensor."""
    return x.shape if paddle.in_dynamic_mode() else paddle.shape(x)


def sizes_of(x: paddle.Tensor) -> list[Any]:
    """The sizes of ``x``, each an int where it is known, or in a static graph a tensor of one int where it is open."""
    return [size if size >= 0 else paddle.shape(x)[axis] for axis, size in enumerate(x.shape)]


def tracked(*tensors):
    """Whether a gradient of what is computed from ``tensors`` (entries may be None) is recorded."""
    return paddle.is_grad_enabled() and not all(x is None or x.stop_gradient for x in tensors)
