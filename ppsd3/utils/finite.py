"""Detects NaN and infinity."""

from __future__ import annotations

import paddle

from .errors import NotFiniteError


def check_finite(tensor: paddle.Tensor, component: str) -> paddle.Tensor:
    """Returns ``tensor``.

    Raises:
        NotFiniteError: it has NaN or infinity; the message names the ``component`` that produced them.
    """
    if not bool(paddle.isfinite(tensor).all()):
        raise NotFiniteError(
            f"The {component} gave numbers that are not finite, so the picture would be black. In float16 its "
            "activations may overflow: load it with paddle_dtype='bfloat16' or 'float32' (weights can stay in 16 bits "
            "by storage_dtype). In float32 its weights are damaged, or the latents and embeddings that it got."
        )
    return tensor
