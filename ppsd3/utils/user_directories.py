"""Directories of the user's own, from which code is loaded: nobody else may write there."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile

from . import temporary

_MINE_ONLY = 0o700


def home_directory() -> str | None:
    """The user's home: ``$HOME``, else that of the system's list of users; None if there is none."""
    candidates = [os.environ.get("HOME") or os.environ.get("USERPROFILE")]
    with contextlib.suppress(ImportError, KeyError):  # Windows; a user that the system does not list
        import pwd

        candidates.append(pwd.getpwuid(os.getuid()).pw_dir)
    return next((path for path in candidates if path and os.path.isabs(path)), None)


def cache_directory() -> str:
    """:func:`cache_path`, made if it is missing.

    Raises:
        OSError: see :func:`private_directory`.
    """
    return private_directory(cache_path())


def cache_path() -> str:
    """Where ppsd3 keeps what it can make again: ``$XDG_CACHE_HOME/ppsd3`` if that is absolute, else
    ``~/.cache/ppsd3``; for a user without a home, a directory of his in the system's directory of temporary files."""
    base, home = os.environ.get("XDG_CACHE_HOME"), home_directory()
    if base and os.path.isabs(base):
        return os.path.join(base, "ppsd3")
    if home is not None:
        return os.path.join(home, ".cache", "ppsd3")
    return os.path.join(tempfile.gettempdir(), f"ppsd3-{_me()}")


def private_directory(path: str) -> str:
    """``path``, made if it is missing (a file, link or pipe of one's own in its place goes).

    Raises:
        OSError: it cannot be made, belongs to another user, or others may write there.
    """
    parent = os.path.dirname(path)
    if not os.path.lexists(parent):
        os.makedirs(parent, mode=_MINE_ONLY, exist_ok=True)
    if os.path.lexists(path) and not os.path.isdir(path):
        _require_own(path, os.lstat(path))
        temporary.remove(path)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, _MINE_ONLY)
    _require_own(path, os.lstat(path))
    _require_own(path, os.stat(path))
    return path


def read_own_file(path: str) -> bytes:
    """The content of a regular file, no link to one.

    Raises:
        OSError: it is none, belongs to another user, or others may write to it.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is no file")
        _require_own(path, status)
        return file.read()


def name_hub_caches() -> None:
    """Gives the hubs' clients directories of the user's own for their caches, where they would take relative ones:
    without a home, or with a relative ``$XDG_CACHE_HOME``. Variables that are set stay."""
    if os.path.isabs(os.path.expanduser("~")) and os.path.isabs(os.environ.get("XDG_CACHE_HOME") or os.sep):
        return
    for variable, name in (("HF_HOME", "huggingface"), ("MODELSCOPE_CACHE", "modelscope")):
        if variable not in os.environ:
            os.environ[variable] = os.path.join(cache_directory(), name)


def _me():
    return os.geteuid() if hasattr(os, "geteuid") else "user"


def _require_own(path, status):
    if not hasattr(os, "geteuid"):  # Windows, whose permissions are others
        return
    if status.st_uid != os.geteuid():
        raise PermissionError(
            f"{path} belongs to another user; remove it, or set XDG_CACHE_HOME to a directory of yours"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(status.st_mode):
        raise PermissionError(f"others may write to {path}, and what lies there is run; `chmod go-w {path}`")
