"""Implementations that prove themselves: what cannot be tried where it is written is tried where it runs.

An entry of the table with a :class:`Proof` (a fast way on GPUs) is compared with the operation's definition, on small
tensors, when a process first meets a kind of call. Right, and not slower: it is used. Wrong, missing or slower: it is
not, and one line of the log says so. What was found is kept in the user's cache for this Paddle, card, driver and
version of ppsd3, so that later processes need not try again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import threading
import time
from typing import Any, Callable, NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from ..utils import gpu
from ..utils.errors import PPSD3Error
from ..utils.files import atomic_write
from ..utils.json_files import parse_json_object
from ..utils.logging import get_logger
from ..utils.paddle_internals import dynamic_mode
from ..utils.user_directories import cache_directory, read_own_file
from . import features, settings
from .shapes import tracked

# The largest difference from the definition, as a part of its largest result. float32 products on GPUs are TF32's.
TOLERANCE = {"float32": 5e-3, "float16": 1e-2, "bfloat16": 4e-2}
_ROUNDS, _CALLS = 4, 8  # of a measurement of time, after one call that is not measured
_SLOWER = 1.05  # times the definition's: less is noise

_logger = get_logger(__name__)
_trying = threading.RLock()


class Proof(NamedTuple):
    """How an implementation is tried.

    ``sample`` gets ``tensor(*shape)``, which makes one of the call's dtype and place without Paddle's random numbers,
    and then the arguments of the call.
    """

    kind: Callable[..., str]  # of a call's arguments: what decides between right and wrong, fast and slow
    sample: Callable[..., list[Any]]  # small arguments of the same kind
    timed: bool = True  # False: it is there for less memory, not for time


def accepts(operation: str, entry: Any, definition: Callable[..., Any]) -> Callable[..., bool]:
    """What an entry with a proof accepts: what it can compute, and has shown that it does. One look-up per call."""

    def is_proven(*arguments, **options):
        if entry.accepts is not None and not entry.accepts(*arguments, **options):
            return False
        given = (*arguments, *options.values())
        gradients = entry.gradients and tracked(*(x for x in given if isinstance(x, Tensor)))
        dtype = str(given[0].dtype).split(".")[-1]
        kind = f"{dtype}, {entry.proof.kind(*arguments, **options)}" + ", gradients" * gradients
        key = _key(operation, entry.name, kind)
        found = _verdicts()
        if key not in found:
            with _trying:
                if key not in found:
                    place = given[0].place if paddle.in_dynamic_mode() else None  # a graph's have none yet
                    found[key] = _tried(key, entry, definition, dtype, place, gradients, arguments, options)
        return found[key] is None

    return is_proven


def told(operation: str, name: str) -> str:
    """What is known of an entry: the kinds of calls that it computes, and those that it does not, and why."""
    start = _key(operation, name, "")
    found = {key[len(start) :]: reason for key, reason in _verdicts().items() if key.startswith(start)}
    return "; ".join(f"{kind}: {reason or 'used'}" for kind, reason in sorted(found.items())) or "not tried yet"


def _key(operation, name, kind):
    return f"{operation} | {name} | {kind}"


def _tried(key, entry, definition, dtype, place, gradients, arguments, options):
    """None, or why the definition computes instead."""
    rng = np.random.RandomState(0)

    def tensor(*shape):
        made = paddle.to_tensor(rng.standard_normal(shape).astype("float32"), place=place).astype(dtype)
        made.stop_gradient = not gradients
        return made

    with contextlib.ExitStack() as stack:
        stack.enter_context(dynamic_mode())
        stack.enter_context(paddle.amp.auto_cast(enable=False))
        stack.enter_context(paddle.set_grad_enabled(gradients))
        stack.enter_context(settings.use_kernels("reference"))
        try:
            reason = _compared(entry, definition, entry.proof.sample(tensor, *arguments, **options), dtype)
        except Exception as error:  # noqa: BLE001 (whatever Paddle raises, the definition computes it)
            reason = f"{type(error).__name__}: {_short(error)}"
            if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
                return reason  # which says nothing of the next process
    if reason is not None:
        _logger.info("Not used: %s (%s)", key, reason)
    _keep(key, reason)
    return reason


def _short(error):
    """The line that says what is wrong; Paddle's begins with the kind of error, among lines about where it arose."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return next((line for line in lines if re.match(r"\(\w+\) ", line)), lines[-1])[:200]


def _compared(entry, definition, sample, dtype):
    wanted = [x for x in sample if isinstance(x, Tensor) and not x.stop_gradient]
    expected = _results(definition, sample, wanted)
    for x, y in zip(_results(entry.function, sample, wanted), expected):
        if x.shape != y.shape:
            return f"wrong: {list(x.shape)} instead of {list(y.shape)}"
        error = np.abs(x - y).max() / max(np.abs(y).max(), 1e-30)
        if not error <= TOLERANCE.get(dtype, 0):
            return f"wrong by {error:.2g} of the largest result"
    if not entry.proof.timed:
        return None
    ours, theirs = _seconds(entry.function, definition, sample)
    return None if ours <= _SLOWER * theirs else f"takes {ours / theirs:.2f} of the definition's time"


def _results(function, sample, wanted):
    """Arrays of the result, and of the gradients of half its square."""
    y = function(*sample)
    found = [y, *(paddle.grad(y, wanted, grad_outputs=y.detach()) if wanted else ())]
    return [x.astype("float32").numpy() for x in found]


def _seconds(*functions_and_sample):
    """The shortest time of each function, in turn."""
    *functions, sample = functions_and_sample
    best = [float("inf")] * len(functions)
    with paddle.no_grad():
        for _ in range(_ROUNDS):
            for i, function in enumerate(functions):
                start = time.perf_counter()
                for _ in range(_CALLS):
                    y = function(*sample)
                y.flatten()[:1].numpy()  # waits for the device
                best[i] = min(best[i], time.perf_counter() - start)
    return best


def _machine():
    from .. import __version__

    card = features.card()
    name, driver = (None, None) if card is None else (card.name, gpu.driver()[0])
    return {"ppsd3": __version__, "paddle": paddle.__version__, "card": name, "driver": driver}


def _path():
    digest = hashlib.sha256(json.dumps(_machine()).encode()).hexdigest()[:16]
    return os.path.join(cache_directory(), f"fast-ways-{digest}.json")


def _verdicts() -> dict[str, str | None]:
    """Key -> None, or why not: what this process and those before it have found."""
    if not _known.cache_info().currsize:
        with _trying:  # of threads that come first together, each would have its own
            _known()
    return _known()


@functools.cache
def _known() -> dict[str, str | None]:
    return _kept()


def _kept():
    """What the file has; nothing where it is missing, broken or another machine's."""
    try:
        path = _path()
        content = parse_json_object(read_own_file(path), path)
    except (OSError, PPSD3Error):
        return {}
    found = content.get("verdicts")
    if content.get("machine") != _machine() or not isinstance(found, dict):
        return {}
    return {key: reason for key, reason in found.items() if reason is None or isinstance(reason, str)}


def _keep(key, reason):
    """Adds to the file what was found; without a cache it is found again by each process."""
    content = {"machine": _machine(), "verdicts": {**_kept(), key: reason}}
    try:
        with atomic_write(_path()) as file:
            file.write(json.dumps(content, indent=1).encode())
    except (OSError, PPSD3Error) as error:
        _logger.info("What was tried is not remembered (%s)", error)
