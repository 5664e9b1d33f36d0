"""Text of strangers, made safe to print: what a terminal would obey is shown as an escape."""

from __future__ import annotations

import contextlib
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

# Control characters, invisible ones that format or turn around what follows, halves of surrogate pairs, separators.
_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: Any, lines: bool = False) -> str:
    """``text`` with escapes (of ESC, of text direction) in place of characters that a terminal obeys.

    Args:
        lines: keep line feeds and tabs, which otherwise become escapes too.
    """
    text = str(text)
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(c if c in kept or unicodedata.category(c) not in _OBEYED else _escaped(c) for c in text)


def _escaped(character):
    return character.encode("unicode_escape").decode("ascii")


class _Guarded:
    """A text stream that writes through :func:`printable`; all else is the stream's own."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        # a progress bar goes back to the start of its line
        back = "\r" if text.startswith("\r") and self._stream is not sys.__stdout__ else ""
        safe = back + printable(text[len(back) :], lines=True)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(safe.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Whatever is printed inside, by whomever, passes through :func:`printable`: results, errors, logs, warnings."""
    with contextlib.redirect_stdout(_Guarded(sys.stdout)), contextlib.redirect_stderr(_Guarded(sys.stderr)):  # type: ignore[type-var]
        yield
