"""Writes files so that a file under its final name is always complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO

from .types import PathLike


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[IO[bytes]]:
    """Opens a temporary binary file beside ``path``; renames it to ``path`` on success, deletes it on any failure."""
    directory = os.path.dirname(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=os.path.basename(path) + ".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        # mkstemp makes the file private to its owner; a checkpoint has the permissions of any other new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def staging_directory(target: str) -> Iterator[str]:
    """A temporary directory beside ``target``, hence on the same disk, so that moving into place copies nothing."""
    staging = tempfile.mkdtemp(dir=os.path.dirname(target), prefix=os.path.basename(target) + ".", suffix=".tmp")
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def move_into(staging: str, target: str, last: str) -> None:
    """Moves everything in ``staging`` into ``target``, replacing what is there; the file called ``last`` moves last."""
    os.makedirs(target, exist_ok=True)
    for name in sorted(os.listdir(staging), key=lambda name: name == last):
        final = os.path.join(target, name)
        if os.path.isdir(final):
            shutil.rmtree(final)
        os.replace(os.path.join(staging, name), final)


def replace_directory(staging: str, target: str) -> None:
    """Renames ``staging`` to ``target``, which is new, or a directory that is removed then: whoever reads ``target``
    finds all of the one or all of the other."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(staging, 0o777 & ~umask)  # mkdtemp made it private to its owner
    former = staging + ".former"
    with contextlib.suppress(FileNotFoundError):
        os.rename(target, former)
    try:
        os.rename(staging, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.rename(former, target)
        raise
    finally:
        shutil.rmtree(former, ignore_errors=True)
