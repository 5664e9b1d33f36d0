"""Attention on a device in every form in which networks call it, beside its definition in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle

from ...ops import dispatch
from ...ops.attention import attention
from .report import without_directories


class Form(NamedTuple):
    """A call: ``[B, S, h, d]``, the shape of the bias, and the rest."""

    shape: tuple[int, int, int, int]
    bias: tuple[int, ...] | None = None
    causal: bool = False
    scale: float | None = None


FORMS = {
    "joint": Form((2, 1357, 24, 64)),  # 1,024 tokens of a picture of 512x512, and 333 of text
    "joint, narrow": Form((2, 349, 5, 24)),  # the bundled model's
    "VAE": Form((1, 1024, 1, 512)),
    "CLIP": Form((2, 77, 12, 64), causal=True),
    "CLIP, padding": Form((2, 77, 12, 64), bias=(1, 1, 77, 77)),
    "T5": Form((2, 256, 64, 64), bias=(1, 64, 256, 256), scale=1.0),
    "T5, padding": Form((2, 77, 8, 64), bias=(2, 8, 77, 77), scale=1.0),
}


def attention_table(dtypes: Sequence[str], forms: dict[str, Form] | None = None) -> dict[str, Any]:
    """For each form and dtype, where Paddle computes now: which implementation, and its largest error."""
    return {f"{name}, {dtype}": entry for dtype in dtypes for name, entry in _entries(forms or FORMS, dtype)}


def _entries(forms, dtype) -> Iterator[tuple[str, Any]]:
    for name, form in forms.items():
        try:
            yield name, _entry(form, dtype)
        except Exception as error:  # noqa: BLE001, whatever fails is the entry
            yield name, f"{type(error).__name__}: {without_directories(str(error))[-200:]}"


def _entry(form, dtype):
    draw = np.random.default_rng(0)
    rounded = [paddle.to_tensor(draw.standard_normal(form.shape).astype("float32") / 2).astype(dtype) for _ in "qkv"]
    bias = None
    if form.bias is not None:
        bias = paddle.to_tensor(draw.standard_normal(form.bias).astype("float32")).astype(dtype)
    q, k, v = rounded
    with paddle.no_grad():
        taken = dispatch.choose("attention", q, k, v, bias, form.causal, form.scale).name
        got = attention(q, k, v, bias, form.causal, form.scale).astype("float32")
        q, k, v = (x.astype("float32") for x in rounded)
        bias = None if bias is None else bias.astype("float32")
        want = dispatch.reference(attention)(q, k, v, bias, form.causal, form.scale)
    return {"by": taken, "error": float((got - want).abs().max())}
