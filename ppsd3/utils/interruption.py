"""Interruptions (Ctrl-C) of long work in libraries."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


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
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noticed:
        raise KeyboardInterrupt
