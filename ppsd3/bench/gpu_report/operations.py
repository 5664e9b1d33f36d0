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
    q, k, v = (paddle.to_tensor(draw.standard_normal(form.shape).astype("float32") / 2) for _ in range(3))
    bias = None if form.bias is None else paddle.to_tensor(draw.standard_normal(form.bias).astype("float32"))
    rounded = [None if x is None else x.astype(dtype) for x in (q, k, v, bias)]
    arguments = (*rounded, form.causal, form.scale)
    with paddle.no_grad():
        taken = dispatch.choose("attention", *arguments).name
        got = attention(*arguments).astype("float32")
        exact = [None if x is None else x.astype("float32") for x in rounded]
        want = dispatch.reference(attention)(*exact, form.causal, form.scale)
    return {"by": taken, "error": float((got - want).abs().max())}
