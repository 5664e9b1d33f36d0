"""Detects NaN and infinity."""

from __future__ import annotations

import paddle

from .errors import NotFiniteError


def check_finite(*made: tuple[str, paddle.Tensor]) -> None:
    """Reads the device once for all that is checked.

    Args:
        made: components and what they gave, in the order in which they computed.

    Raises:
        NotFiniteError: there is NaN or infinity; the message names the first component that produced them.
    """
    finite = paddle.stack([paddle.isfinite(tensor).all() for _, tensor in made]).numpy()
    component = next((name for (name, _), fine in zip(made, finite) if not fine), None)
    if component is not None:
        raise NotFiniteError(
            f"The {component} gave numbers that are not finite, so the picture would be black. In float16 its "
            "activations may overflow: load it with paddle_dtype='bfloat16' or 'float32' (weights can stay in 16 bits "
            "by storage_dtype). In float32 its weights are damaged, or the latents and embeddings that it got."
        )
