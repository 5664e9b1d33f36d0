"""Masks of attention, in the forms that users have them."""

from __future__ import annotations

from typing import Any

import paddle

from ..ops import mask_bias
from ..utils.errors import InputError


def bias_of(mask: paddle.Tensor, image: tuple[Any, ...], text: tuple[Any, ...] | None) -> paddle.Tensor:
    """``attention_mask`` of an attention processor as a bias of the scores.

    Args:
        mask: [B, S] of the tokens that are seen, [B, S, S] of which token sees which, or [B, h, S, S]; an axis of 1
            serves all. S = N + L, image first; without text a longer mask is cut to the image tokens. True or 1 means
            seen, floats are added to the scores.
        image, text: q, k, v [B, N, h, d] and [B, L, h, d]; q of the text, or all of it, may be None.

    Returns:
        [1 or B, 1 or h, queries, N + L], dtype of the queries.

    Raises:
        InputError: the mask has another shape; the message lists what fits.
    """
    q, keys = image[0], image[1].shape[1] + (0 if text is None else text[1].shape[1])
    wanted = q.shape[0], q.shape[2], keys, keys
    bias = mask.unsqueeze({2: [1, 2], 3: [1]}[mask.ndim]) if mask.ndim in (2, 3) else mask
    if text is None and bias.ndim == 4:
        bias = bias[:, :, :keys, :keys]
    fits = bias.ndim == 4 and bias.shape[3] == keys and all(n in (1, m) for n, m in zip(bias.shape, wanted))
    if not fits:
        raise InputError(
            f"attention_mask has the shape {list(mask.shape)} for {wanted[0]} rows, {wanted[1]} heads and {keys} "
            f"tokens, image first. Pass [{wanted[0]}, {keys}], [{wanted[0]}, {keys}, {keys}] or {list(wanted)}."
        )
    queries = q.shape[1] if text is not None and text[0] is None else keys
    return mask_bias(bias, q.dtype)[:, :, :queries].expand([*bias.shape[:2], queries, keys])
