"""Loads named tensors into the parameters and buffers of a Layer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import paddle
from paddle import nn

from ..utils.types import Dtype, Tensors
from .layout import detect_layout, linear_weights
from .report import LoadReport
from .source import TensorSource, explain_source
from .tensors import dtype_name, is_floating, put

# Casting releases the GIL; more threads than this only raise the peak, which each raises by one tensor.
_THREADS = 2


def load_weights(
    layer: nn.Layer,
    source: TensorSource,
    dtype: Dtype | None = None,
    keep_in_fp32: Iterable[str] = (),
    ignored_keys: Iterable[str] = (),
    tied_keys: Mapping[str, str] | None = None,
    layout: str | None = None,
    held: Collection[str] = (),
) -> LoadReport:
    """Fills ``layer``'s parameters and persistable buffers from ``source``, strictly, one tensor at a time.

    The peak beyond the layer's own memory is the two largest tensors. Names and shapes are compared before anything is
    read. A layer made under ``paddle.LazyGuard`` needs no memory of its own before.

    Args:
        dtype: what floating-point tensors become. Default: as the source has them. Tensors of other
            kinds keep the layer's dtype.
        keep_in_fp32: module names whose parameters stay float32 if ``dtype`` is float16, because
            they overflow its range (transformers' rule; bfloat16 has the range).
        ignored_keys: regular expressions of source names that may be left unused.
        tied_keys: alias -> owner; the two are one tensor, and the source may have either or both.
        layout: "torch" or "paddle". Default: detected.
        held: names of tensors that keep the layer's dtype whatever ``dtype`` is.

    Returns:
        LoadReport: with :attr:`~LoadReport.ok`.

    Raises:
        WeightMismatchError: a name is missing or unexpected, or a shape differs.
    """
    slots, places, transposed, report = fit(layer, source, ignored_keys, tied_keys, layout)
    report.raise_if_bad()

    def fill(name):
        slot = slots[name]
        target = slot.dtype if name in held else target_dtype(name, slot.dtype, dtype, keep_in_fp32)
        tensor = source.read(places[name], target)
        if name in transposed:
            tensor = paddle.transpose(tensor, [1, 0])
            source.forget(places[name])
        put(slot, tensor)

    with paddle.no_grad(), ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(fill, places))
    return report


def fit(
    layer: nn.Layer,
    source: TensorSource,
    ignored_keys: Iterable[str] = (),
    tied_keys: Mapping[str, str] | None = None,
    layout: str | None = None,
) -> tuple[Tensors, dict[str, str], set[str], LoadReport]:
    """Compares names and shapes of ``source`` and ``layer``; arguments as in :func:`load_weights`.

    Returns:
        (slots, places, transposed, report): the layer's tensors by name; the source's name for each; the names of those
        that the source holds transposed; and the LoadReport.
    """
    slots, places, dropped = match_names(layer, source, ignored_keys, tied_keys or {})
    layout = layout or detect_layout(source, layer)
    transposed = linear_weights(layer) & set(places) if layout == "paddle" else set()

    def shape_of(name):
        shape = tuple(source.info(places[name]).shape)
        return shape[::-1] if name in transposed else shape

    report = LoadReport(
        model=type(layer).__name__,
        source=source.path,
        missing=[name for name in slots if name not in places],
        unexpected=[key for key in source.keys() if key not in places.values() and key not in dropped],
        mismatched=[
            (name, shape_of(name), tuple(slots[name].shape))
            for name in places
            if shape_of(name) != tuple(slots[name].shape)
        ],
        dropped=dropped,
    )
    if not report.ok:
        report = dataclasses.replace(report, stranger=explain_source(source, "any"))
    return slots, places, transposed, report


def match_names(
    layer: nn.Layer, source: TensorSource, ignored_keys: Iterable[str], tied_keys: Mapping[str, str]
) -> tuple[Tensors, dict[str, str], list[str]]:
    """(slots, places, dropped): the layer's tensors by name, the source's name for each, names that may stay unused."""
    keys = list(source.keys())
    present = set(keys)
    slots = {name: slot for name, slot in layer.state_dict().items() if tied_keys.get(name) is None}
    owner_to_alias = {owner: alias for alias, owner in tied_keys.items() if alias in present}
    places = {}
    for name in slots:
        if name in present:
            places[name] = name
        elif name in owner_to_alias:
            places[name] = owner_to_alias[name]
    used = set(places.values())
    may_drop = [key for key in keys if key not in used]
    dropped = [
        key
        for key in may_drop
        if tied_keys.get(key) in places or any(re.search(pattern, key) for pattern in ignored_keys)
    ]
    # In file order, so that a disk reads forward.
    order = {key: position for position, key in enumerate(keys)}
    return slots, dict(sorted(places.items(), key=lambda item: order[item[1]])), dropped


def target_dtype(name: str, slot_dtype: paddle.dtype, dtype: Dtype | None, keep_in_fp32: Iterable[str]) -> Dtype | None:
    """The dtype of the tensor ``name`` in a model of ``dtype``; None is the source's own."""
    if not is_floating(slot_dtype):
        return slot_dtype
    if dtype is not None and dtype_name(dtype) == "float16" and set(keep_in_fp32) & set(name.split(".")):
        return paddle.float32
    return dtype
