"""What is looked for, done on purpose, so that ``test_fuzz.py`` can check that it is found."""

from __future__ import annotations

import os
import signal

import numpy as np

from ..case import Case, Wrong


class Kind:
    def __init__(self, directory):
        pass

    def case(self, rng, place):
        name = rng.choice(sorted(FAULTS))
        return Case(FAULTS[name], ("prompt",), name)


def _refuse(message):
    from ppsd3.utils.errors import InputError

    raise InputError(message)


def _loop():
    while True:
        pass


def _say_wrong():
    raise Wrong("another tensor")


FAULTS = {
    "accepted": lambda: None,
    "refused": lambda: _refuse("prompt is 3."),
    "names nothing": lambda: _refuse("It is 3."),
    "raw error": lambda: {}["prompt"],
    "too much memory": lambda: np.empty(5 << 28, np.uint8),
    "wrong": _say_wrong,
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": _loop,
}
