"""Detects NaN and infinity."""

from __future__ import annotations

import paddle

from .errors import NotFiniteError


def check_finite(tensor: paddle.Tensor, component: str, *others: paddle.Tensor) -> paddle.Tensor:
    """Returns ``tensor``. A device is read once, for it and ``others`` of the same component.

    Raises:
        NotFiniteError: it has NaN or infinity; the message names the ``component`` that produced them.
    """
    finite = paddle.isfinite(tensor).all()
    for other in others:
        finite = paddle.logical_and(finite, paddle.isfinite(other).all())
    if not bool(finite):
        raise NotFiniteError(
            f"The {component} gave numbers that are not finite, so the picture would be black. In float16 its "
            "activations may overflow: load it with paddle_dtype='bfloat16' or 'float32' (weights can stay in 16 bits "
            "by storage_dtype). In float32 its weights are damaged, or the latents and embeddings that it got."
        )
    return tensor
