"""Bytes in words, and words as bytes."""

from __future__ import annotations

import re

from .errors import InputError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def in_words(count: float) -> str:
    """``"1.5 GB"`` for 1.5e9 bytes; units are powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def parse_size(size: int | str, name: str) -> int:
    """Bytes in ``size``: an int, or a string such as ``"10GB"`` (powers of ten) or ``"10GiB"`` (powers of two).

    Raises:
        InputError: not such a size, or not positive; ``name`` is what the message calls it.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match and not isinstance(size, bool):
        number = float(match.group(1)) * {"": 1, "B": 1, **_UNITS}.get(match.group(2).upper(), 0)
        if number >= 1:
            return int(number)
    raise InputError(f"{name}={size!r} is no size; use a number of bytes or a string such as '5GB'.")
