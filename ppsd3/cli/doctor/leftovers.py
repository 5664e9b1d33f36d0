"""What interrupted saves have left in directories."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from ...utils.files import bytes_in, is_interrupted, settled
from ...utils.sizes import in_words
from ...utils.temporary import find_leftovers, remove_leftovers
from .findings import Finding
from .installation import space

# What version 0.1.0 left: no lock says whether its process is alive.
_UNLOCKED = re.compile(r".+\.[a-z0-9_]{8}\.tmp(\.former)?")


def in_directory(directory: str, clean: bool) -> Iterator[Finding]:
    """What saves have left in a directory, and in its parent, where directories wait that are to take its place."""
    real, found = os.path.realpath(directory), False
    for folder in (os.path.dirname(real), *_folders(real)):
        for finding in _folder(folder, clean):
            found = True
            yield finding
    if not found:
        yield space("directory", directory, real)


def _folders(directory):
    for folder, names, _ in os.walk(directory):
        yield folder
        left = {os.path.basename(path) for path in find_leftovers(folder)}
        names[:] = [name for name in names if name not in left]


def _folder(folder, clean):
    if is_interrupted(folder):
        settled(folder)
        done = not is_interrupted(folder)
        state = f"an interrupted save {'is complete now' if done else 'cannot be completed: no permission'}"
        remedy = "" if done else "Run this as the user who may write there."
        yield Finding("interrupted", folder, state, "note" if done else "wrong", remedy, folder)
    removed = remove_leftovers(folder) if clean else []
    for path in removed:
        yield Finding("removed", path, "left by an interrupted save, removed", "note", value=path)
    for path in find_leftovers(folder):
        remedy = "It cannot be removed: no permission." if clean else "`ppsd3 doctor --clean` removes it."
        yield Finding(
            "leftover", path, f"left by an interrupted save ({in_words(bytes_in(path))})", "wrong", remedy, path
        )
    for name in sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else ():
        if _UNLOCKED.fullmatch(name) and not name.startswith("."):
            path, state = os.path.join(folder, name), "looks like what version 0.1.0 left"
            yield Finding("old", path, state, "note", "If so, remove it yourself when nothing is being saved.", path)
