"""Interruptions of long work: Ctrl-C, and the signal SIGTERM, by which systems end a program."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Whatever cleans up after Ctrl-C does so after this too."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raises :class:`Terminated` in the block when SIGTERM comes, unless that is ignored or handled already. Acts in
    the main thread."""

    def terminate(number, frame):
        raise Terminated

    acts = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if acts:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if acts:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt for one that code in the block has swallowed, or has turned into an error of its own:
    what C++ code does with an exception of Python code that it calls. Acts in the main thread, which alone sees any."""
    noticed: list[int] = []
    before = {}

    def noticing(handler):
        def handle(number, frame):
            noticed.append(number)
            handler(number, frame)

        return handle

    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number, handler in before.items():
        signal.signal(number, noticing(handler))
    try:
        yield
    except Exception as error:
        if noticed:
            raise _interruption(noticed) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noticed:
        raise _interruption(noticed)


def _interruption(signals):
    return Terminated() if signals[-1] == signal.SIGTERM else KeyboardInterrupt()
