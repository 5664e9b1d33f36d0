"""Temporary files and directories beside what they will replace, told by locks from those of dead processes.

Whoever makes one holds a lock on it. The system gives the lock back when the process ends, however that ends, so an
unlocked one is a leftover, which the next save to the same place removes. Where the system or the file system has no
such locks (Windows, some network disks), nothing is taken for a leftover.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator

if sys.platform != "win32":
    import fcntl

PREFIX = ".ppsd3-"  # of every name here: hidden, and of one length, however long the names are that they stand for
_NAME = re.compile(re.escape(PREFIX) + r"[0-9a-f]{16}\.tmp")
LONGEST_WAIT = 2.0  # seconds for a lock that others hold
_PAUSE = 0.005  # seconds between two attempts at a lock


def make_file(directory: str) -> tuple[str, int]:
    """A new temporary file in ``directory``, with the permissions that any new file has.

    Returns:
        Its path, and the descriptor, open to write, that holds its lock until it is closed.
    """
    while True:
        path = _new_path(directory)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if _is_taken(path, descriptor):
            return path, descriptor
        os.close(descriptor)


def make_directory(directory: str) -> tuple[str, int | None]:
    """A new temporary directory in ``directory``, and the descriptor that holds its lock (None on Windows)."""
    while True:
        path = _new_path(directory)
        os.mkdir(path)
        descriptor = _open_directory(path)
        if descriptor is None:
            if os.path.isdir(path):  # Windows
                return path, None
        elif _is_taken(path, descriptor):
            return path, descriptor
        else:
            os.close(descriptor)  # another process saw it unlocked


def find_leftovers(directory: str) -> list[str]:
    """Paths of the temporary files and directories in ``directory`` whose makers are dead."""
    return [path for path in _temporaries(directory) if not is_alive(path)]


def remove_leftovers(directory: str) -> list[str]:
    """Removes what :func:`find_leftovers` finds, as far as permissions go; the paths that are gone."""
    return [path for path in _temporaries(directory) if _removed_leftover(path)]


def discard(path: str) -> None:
    """Removes a file or a directory all at once: it has no name any more before the first of its files goes."""
    if os.path.lexists(path):
        doomed = _new_path(os.path.dirname(os.path.abspath(path)))
        os.rename(path, doomed)
        remove(doomed)


def is_alive(path: str) -> bool:
    """Whether the process that made the temporary ``path`` may still be at work on it."""
    with _taken_over(path) as dead:
        return not dead


def remove(path: str) -> None:
    """Removes a file, a link, or a directory with all that is in it, as far as that goes."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


@contextlib.contextmanager
def locked(directory: str, exclusive: bool) -> Iterator[bool]:
    """Holds the lock of ``directory``: many may share it, one may have it exclusively.

    Whoever cannot have it within ``LONGEST_WAIT`` seconds goes on without.

    Yields:
        bool: whether it is held.
    """
    end, held, descriptor = time.monotonic() + LONGEST_WAIT, False, None
    try:
        while True:
            descriptor = _open_directory(directory)
            locking = None if descriptor is None else _lock(descriptor, exclusive)
            while locking is False and time.monotonic() < end:
                time.sleep(_PAUSE)
                locking = _lock(descriptor, exclusive)
            held = bool(locking)
            if descriptor is None or not held or _is_at(directory, descriptor):
                break
            os.close(descriptor)  # another directory has taken its place
            descriptor = None
        yield held
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _new_path(directory):
    return os.path.join(directory, f"{PREFIX}{secrets.token_hex(8)}.tmp")


def _is_taken(path, descriptor):
    """Locks the new file; False if another process saw it unlocked before, and removes it."""
    return _lock(descriptor, exclusive=True) is not False and _is_at(path, descriptor)


def _temporaries(directory):
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return [os.path.join(directory, name) for name in names if _NAME.fullmatch(name)]


def _removed_leftover(path):
    with _taken_over(path) as dead:
        if dead:
            remove(path)
        return dead and not os.path.lexists(path)


@contextlib.contextmanager
def _taken_over(path):
    """Holds the lock of the temporary ``path``, if its maker does not; yields whether that is so."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        yield False
        return
    try:
        yield bool(_lock(descriptor, exclusive=True)) and _is_at(path, descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor, exclusive):
    """Locks an open file, unless another one has: whether it is held now, None where there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _open_directory(path):
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:
        return None


def _is_at(path, descriptor):
    """Whether ``path`` still names what ``descriptor`` has open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False
