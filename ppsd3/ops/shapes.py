"""Sizes and kinds of tensors, for code that also runs in static graphs, where sizes are open."""

import paddle

from ..utils.paddle_internals import is_autocasting


def shape_of(x):
    """The sizes of ``x``: ints, or in a static graph an int32 tensor."""
    return x.shape if paddle.in_dynamic_mode() else paddle.shape(x)


def tracked(*tensors):
    """Whether a gradient of what is computed from ``tensors`` (entries may be None) is recorded."""
    return paddle.is_grad_enabled() and not all(x is None or x.stop_gradient for x in tensors)


def plain_on_cpu(*tensors):
    """Whether ``tensors`` (entries may be None) are non-empty float32 on the CPU, outside AMP and static graphs."""
    if not paddle.in_dynamic_mode() or is_autocasting():
        return False
    return all(
        x is None or (x.dtype == paddle.float32 and x.place.is_cpu_place() and 0 not in x.shape) for x in tensors
    )
