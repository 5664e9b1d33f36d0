"""Which operators of Paddle a GPU can compute, of those that a call uses on a CPU.

Paddle counts the kernels that it chooses by name and dtype (what ``paddle.amp.debugging.collect_operator_stats``
prints). ``data/gpu_kernels_2.6.2.json`` lists what the wheel paddlepaddle-gpu 2.6.2 registers for GPUs. Calls here
compute in float32, so what is counted with float32 has to be there in float16 and bfloat16 too, unless it is one of
:data:`IN_FLOAT32`.
"""

import functools
import json
import sys

import paddle
from paddle.base import core

from ppsd3.ops import use_kernels

from .process import TESTS

DTYPES = ("float16", "bfloat16", "float32")

# Operators that get float32 tensors whatever the dtype of the networks, and where.
IN_FLOAT32 = {}
# Names in Paddle 3 of what the list calls otherwise; 2.6 divided by a number as it multiplied.
RENAMED = {"cast": "transfer_dtype", "reshape": "reshape2", "div_scale": "scale"}


@functools.cache
def gpu_kernels():
    """dict: operator -> dtypes, of :data:`DTYPES`, for which a GPU has a kernel."""
    by_dtypes = json.loads((TESTS / "data" / "gpu_kernels_2.6.2.json").read_text())
    return {name: dtypes.split() for dtypes, names in by_dtypes.items() for name in names.split()}


def assert_gpu_computes(draw):
    """Every operator that ``draw()`` uses has a kernel on GPUs, in every dtype that networks may have."""
    used = _used(draw)
    missing = {name: lack for name, counts in used.items() for lack in [_lacking(name, counts)] if lack}
    places = _places(draw, missing) if missing else {}
    assert not missing, "GPUs have no kernel for " + "; ".join(
        f"{name} in {', '.join(lack)}, called at {', '.join(sorted(places.get(name, ['?'])))}"
        for name, lack in missing.items()
    )


def _used(draw):
    """name -> (numbers of calls in float16, bfloat16, float32, another dtype)"""
    paddle.set_flags({"FLAGS_low_precision_op_list": 1})
    core.clear_low_precision_op_list()
    try:
        with use_kernels("reference"):  # no GPU takes the ways of CPUs
            draw()
        return _counted()
    finally:
        paddle.set_flags({"FLAGS_low_precision_op_list": 0})


def _counted():
    return {name: tuple(map(int, counts.split(","))) for name, counts in core.get_low_precision_op_list().items()}


def _lacking(name, counts):
    """The dtypes in which GPUs lack an operator that was called so."""
    known = gpu_kernels()
    there = known.get(name, known.get(RENAMED.get(name)))
    if there is None:
        return ["any dtype"]
    needed = [dtype for dtype, count in zip(DTYPES, counts) if count]
    if "float32" in needed and name not in IN_FLOAT32:
        needed = DTYPES
    return [dtype for dtype in needed if dtype not in there]


def _places(draw, missing):
    """name -> the lines of the package at which a second call uses it."""
    found, state = {}, {"counts": {}, "line": "?"}

    def trace(frame, event, argument):
        file = frame.f_code.co_filename.rpartition("/ppsd3/")
        if not file[1]:
            return None
        counts = _counted()
        for name in missing:
            if counts.get(name) != state["counts"].get(name):
                found.setdefault(name, set()).add(state["line"])
        state.update(counts=counts, line=f"{file[2]}:{frame.f_lineno}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        _used(draw)
    finally:
        sys.settrace(before)
    return found
