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
import time
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PREFIX = ".ppsd3-"  # of every name here: hidden, and of one length, however long the names are that they stand for
_NAME = re.compile(re.escape(PREFIX) + r"[0-9a-f]{16}\.tmp")
_PAUSE = 0.005  # seconds between two attempts at a lock


def make_temporary(directory: str, is_directory: bool) -> tuple[str, int | None]:
    """A new temporary file or directory in ``directory``, with the permissions that any new one has.

    Returns:
        Its path, and the open descriptor that holds its lock until it is closed (None: of a directory on Windows).
    """
    while True:
        path = os.path.join(directory, f"{PREFIX}{secrets.token_hex(8)}.tmp")
        if is_directory:
            os.mkdir(path)
            descriptor = _open_directory(path)
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            descriptor = os.open(path, flags, 0o666)
        if descriptor is None:
            return path, None
        _lock(descriptor, exclusive=True)
        if _is_at(path, descriptor):
            return path, descriptor
        os.close(descriptor)  # another process saw it before it was locked, and removed it


def find_leftovers(directory: str) -> list[str]:
    """Paths of the temporary files and directories in ``directory`` whose makers are dead."""
    return [path for path in _temporaries(directory) if not is_alive(path)]


def remove_leftovers(directory: str) -> list[str]:
    """Removes what :func:`find_leftovers` finds, as far as permissions go; the paths that are gone."""
    removed = []
    for path in _temporaries(directory):
        with _taken_over(path) as dead:
            if dead:
                remove(path)
                removed.append(path)
    return removed


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
def locked(directory: str, exclusive: bool, seconds: float = 2.0) -> Iterator[bool]:
    """Holds the lock of ``directory``: many may share it, one may have it exclusively.

    Whoever cannot have it within ``seconds`` goes on without.

    Yields:
        bool: whether it is held.
    """
    end, held, descriptor = time.monotonic() + seconds, False, None
    try:
        while True:
            descriptor = _open_directory(directory)
            held = descriptor is not None and bool(_lock(descriptor, exclusive, end))
            if descriptor is None or not held or _is_at(directory, descriptor):
                break
            os.close(descriptor)  # another directory has taken its place
            descriptor = None
        yield held
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _temporaries(directory):
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.path for entry in entries if _NAME.fullmatch(entry.name))
    except OSError:
        return []


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


def _lock(descriptor, exclusive, end=0.0):
    """Locks an open file: whether it is held now, None where there are no locks. Tries until the time ``end``."""
    if fcntl is None:
        return None
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_PAUSE)
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
