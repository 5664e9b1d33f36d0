"""Functions of tensors that bring a gradient of their own along; for kernels, which want contiguous memory."""

from __future__ import annotations

from typing import Any, Callable

from paddle.autograd import PyLayer

from .native.tensors import dense
from .shapes import tracked


def differentiable(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, some of which may be None, and of options by keyword.

    Args:
        forward: ``(keep, *tensors, **options)``, tensors being contiguous, gives the result and what ``backward`` needs
            (tensors or None); it need not make the latter unless ``keep``.
        backward: ``(gradient of the result, wanted, *what forward gave, **options)`` gives a gradient for each tensor.
            ``wanted`` says for each whether it is asked for; one that is not is dropped.
    """

    class Function(PyLayer):
        @staticmethod
        def forward(ctx, options, *tensors):
            ctx.options, ctx.wanted = options, [None if x is None else not x.stop_gradient for x in tensors]
            result, kept = forward(True, *map(dense, tensors), **options)
            ctx.save_for_backward(*kept)
            return result

        @staticmethod
        def backward(ctx, gradient):
            gradients = backward(dense(gradient), ctx.wanted, *ctx.saved_tensor(), **ctx.options)
            return tuple(g if wanted else None for g, wanted in zip(gradients, ctx.wanted) if wanted is not None)

    def call(*tensors, **options):
        if tracked(*tensors):
            return Function.apply(options, *tensors)
        return forward(False, *map(dense, tensors), **options)[0]

    return call
