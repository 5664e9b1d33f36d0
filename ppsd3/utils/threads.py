"""What threads share: the networks, which one thread changes while no other works with them, and the process.

A pipeline's call says with which networks and tokenizers it works (:func:`working_with`); any number of threads may.
What changes one (:func:`changes_networks`) waits until no other thread works with it, and calls that come later wait
for the change, so that it has its turn however many calls there are. A thread that is inside of a call itself cannot
wait for calls, its own least of all, and is refused.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

from .device import tune_thread
from .errors import InputError
from .logging import get_logger

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Held where something is used that Paddle has once for all threads: building networks (LazyGuard, the names of
# parameters), tracing and running static graphs (static mode, the program being built, the interpreters).
process_wide = threading.RLock()

_turn = threading.Condition()  # guards the three below; of a part of a pipeline they have the id
_working: Counter[tuple[int, int]] = Counter()  # (part, thread) -> how many blocks the thread is in
_changing: dict[int, int] = {}  # part -> thread
_waiting: list[set[int]] = []  # parts, of each change that waits


class Shared:
    """Mixin of what several threads may work with at once."""

    def _shared_parts(self) -> Iterable[Any]:
        """What in it may be shared by itself, as the networks of a pipeline; entries may be None."""
        return ()


def parts_of(owner: Any) -> list[Any]:
    """``owner`` and all that is in it, which are worked with and changed as one."""
    inner = owner._shared_parts() if isinstance(owner, Shared) else ()
    return [owner, *(part for shared in inner if shared is not None for part in parts_of(shared))]


@contextlib.contextmanager
def working_with(owner: Any) -> Iterator[None]:
    """Within the block, other threads do not change what ``owner`` stands for."""
    global _working
    parts = parts_of(owner)  # kept, so that their ids stay theirs
    claim = Counter((id(part), threading.get_ident()) for part in parts)
    with _turn:
        if _changing or _waiting:
            _wait_for_changes(set(map(id, parts)), threading.get_ident())
        _working += claim
    try:
        yield
    finally:
        with _turn:
            _working -= claim
            _turn.notify_all()


class Changing:
    """Context manager: within the block, no other thread works with what ``owner`` stands for, or changes it.

    Args:
        owner: a pipeline or a network.
        what: name of the function, for errors.

    Raises:
        InputError: this thread is inside of a call that works with it, or of another and would have to wait.
    """

    def __init__(self, owner: Any, what: str) -> None:
        self._parts, self._what = parts_of(owner), what  # kept, as in working_with

    def __enter__(self) -> None:
        me, parts = threading.get_ident(), set(map(id, self._parts))
        with _turn:
            self._refuse_within_a_call(parts, me)
            _waiting.append(parts)
            try:
                if _is_busy(parts, me):
                    get_logger(__name__).info("%s() waits for calls that work with the same networks.", self._what)
                _turn.wait_for(lambda: not _is_busy(parts, me))
                self._taken = parts - set(_changing)  # what remains is an outer block's
                _changing.update(dict.fromkeys(self._taken, me))
            finally:
                _waiting.remove(parts)
                _turn.notify_all()

    def __exit__(self, *exception: object) -> None:
        with _turn:
            for part in self._taken:
                del _changing[part]
            _turn.notify_all()

    def _refuse_within_a_call(self, parts, me):
        if any((part, me) in _working for part in parts):
            raise InputError(
                f"{self._what}() changes what this very thread works with: in a call, as of a callback, or within "
                "`using()`. Call it before or after."
            )
        if _is_inside(me) and _is_busy(parts, me):
            raise InputError(
                f"{self._what}() would wait, inside of a call, for calls of other threads, which may wait for this "
                "one. Call it outside of a call, as of a callback."
            )


def changes_networks(function: _Function) -> _Function:
    """Decorator of what changes its first argument, a pipeline or a network: it runs as in :class:`Changing`."""

    @functools.wraps(function)
    def alone(owner: Any, *args: Any, **kwargs: Any) -> Any:
        with Changing(owner, function.__name__):
            return function(owner, *args, **kwargs)

    return cast(_Function, alone)


def works_with_networks(function: _Function) -> _Function:
    """Decorator of what reads its first argument, a pipeline or a network: it runs as in :func:`working_with`."""

    @functools.wraps(function)
    def beside_others(owner: Any, *args: Any, **kwargs: Any) -> Any:
        tune_thread()
        with working_with(owner):
            return function(owner, *args, **kwargs)

    return cast(_Function, beside_others)


def _wait_for_changes(parts, me):
    """For those that other threads make; and for those that wait, unless this thread may be what they wait for."""
    gives_way = not _is_inside(me) and me not in _changing.values()
    _turn.wait_for(
        lambda: not (_is_changed_by_others(parts, me) or (gives_way and any(parts & wanted for wanted in _waiting)))
    )


def _is_busy(parts, me):
    """Whether a change has to wait for other threads."""
    return any(part in parts and thread != me for part, thread in _working) or _is_changed_by_others(parts, me)


def _is_changed_by_others(parts, me):
    return any(_changing.get(part, me) != me for part in parts)


def _is_inside(thread):
    """Whether the thread is inside of a call or the like."""
    return any(worker == thread for _, worker in _working)
