"""Functions with a gradient of their own, as kernels need, and functions that run again for their gradient."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any, Callable

from paddle import Tensor
from paddle.autograd import PyLayer
from paddle.distributed.fleet.utils import recompute

from .native.tensors import dense
from .shapes import tracked


def differentiable(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, some of which may be None, and of options by keyword.

    Args:
        forward: ``(keep, *tensors, **options)``, tensors being contiguous, gives the result and what ``backward`` needs
            (tensors or None); it need not make the latter unless ``keep``.
        backward: ``(gradient, wanted, *what forward gave, **options)`` gives a gradient for each tensor. The first is
            that of the result, a list if the result is a tuple; ``wanted`` says for each tensor whether its gradient
            is asked for, and one that is not is dropped.
    """

    class Function(PyLayer):
        @staticmethod
        def forward(ctx, options, *tensors):
            ctx.options, ctx.wanted = options, [None if x is None else not x.stop_gradient for x in tensors]
            result, kept = forward(True, *map(_dense, tensors), **options)
            ctx.save_for_backward(*kept)
            return result

        @staticmethod
        def backward(ctx, *given):
            given = [dense(g) for g in given]
            gradients = backward(given if len(given) > 1 else given[0], ctx.wanted, *ctx.saved_tensor(), **ctx.options)
            return tuple(g if wanted else None for g, wanted in zip(gradients, ctx.wanted) if wanted is not None)

    def call(*tensors, **options):
        if tracked(*tensors):
            return Function.apply(options, *tensors)
        return forward(False, *map(_dense, tensors), **options)[0]

    return call


def _dense(x):
    return None if x is None else dense(x)


def recomputed(block: Callable[..., Any], *inputs: Any) -> Any:
    """``block(*inputs)``, a tensor or several, with activations that are computed again in the backward pass.

    Args:
        inputs: the first is a tensor; gradients reach tensors among them and in dicts among them.
    """
    # recompute() gives a gradient to tensors among its own arguments alone
    places = [(i, name) for i, x in enumerate(inputs) if isinstance(x, dict) for name in x]
    places = [(i, name) for i, name in places if isinstance(inputs[i][name], Tensor)]
    inside = [inputs[i][name] for i, name in places]
    if not tracked(*inside, *(x for x in inputs if isinstance(x, Tensor))):  # as where adapters alone train
        detached = inputs[0].detach()  # recompute() gives parameters no gradient if none of its inputs needs one
        detached.stop_gradient = False
        inputs = detached, *inputs[1:]
    context = copy_context()  # on the way back the block runs as it does now, with the call's scale of LoRA layers

    def run(*given):
        outer = list(given[: len(inputs)])
        for (i, name), tensor in zip(places, given[len(inputs) :]):
            outer[i] = {**outer[i], name: tensor}
        return context.run(block, *outer)

    return recompute(run, *inputs, *inside)
