"""What attention takes beside tokens [B, S, D]: pictures and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import paddle

from ..ops import mask_bias
from ..utils.errors import InputError


def are_tokens(attn: Any, *inputs: paddle.Tensor | None) -> bool:
    """Whether image and text tokens (or None) are what the projections ``attn`` take."""
    return all(x is None or x.ndim == 3 for x in inputs) and (inputs[1] is None or attn.has_context)


def as_tokens(
    call: Callable[..., Any],
    attn: Any,
    image: paddle.Tensor,
    text: paddle.Tensor | None,
    mask: paddle.Tensor | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """``call(image, text, attention_mask=mask)``, where image and text may be pictures [B, D, H, W], given back so.

    Raises:
        InputError: there are more arguments, text for an attention without, or inputs of other ranks.
    """
    if args or kwargs:
        given = ", ".join(map(repr, kwargs)) or f"{len(args)} more arguments"
        raise InputError(f"The attention processor was given {given}; it uses attention_mask alone. Leave them out.")
    if text is not None and not attn.has_context:
        raise InputError(
            "This attention is for image tokens alone. Build it with added_kv_proj_dim, or leave text out."
        )
    inputs = [x for x in (image, text) if x is not None]
    if any(x.ndim not in (3, 4) for x in inputs):
        raise InputError(f"Attention takes tokens [B, S, D] or pictures [B, D, H, W], not {[x.shape for x in inputs]}.")
    tokens = [x if x.ndim == 3 else x.flatten(2).transpose([0, 2, 1]) for x in inputs]
    outputs = call(*tokens, attention_mask=mask)
    if text is None:
        return _like(image, outputs)
    return tuple(_like(given, made) for given, made in zip(inputs, outputs))


def _like(given, tokens):
    """``tokens [B, S, D]``, or None, as a picture where one was given."""
    if tokens is None or given.ndim == 3:
        return tokens
    return tokens.transpose([0, 2, 1]).reshape([0, tokens.shape[-1], *given.shape[2:]])


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
