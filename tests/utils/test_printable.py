"""Text of strangers on its way to a terminal."""

import io
import sys

import pytest

from ppsd3.utils.printable import guarded_streams, printable


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a red circle, 日本, é, 🙂", "a red circle, 日本, é, 🙂"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\rb\x08\x7f\x9b1m", r"a\rb\x08\x7f\x9b1m"),
        ("\u202egnp.exe\u2066\u200f", r"\u202egnp.exe\u2066\u200f"),
        ("line\nline\tend\u2028", r"line\nline\tend\u2028"),
        ("\udcff\ufeff", r"\udcff\ufeff"),
        (b"\x1b".decode() * 3, r"\x1b\x1b\x1b"),
        (7, "7"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_lines_may_stay():
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"


def test_streams(capsys):
    with guarded_streams():
        print("\x1b[31mred\nline")
        print("\rprogress \x1b[A", end="", file=sys.stderr)
    out, err = capsys.readouterr()
    assert out == "\\x1b[31mred\nline\n" and err == "\rprogress \\x1b[A"
    print("\x1b", end="")
    assert capsys.readouterr().out == "\x1b"  # as before


def test_what_the_terminal_cannot_show(monkeypatch):
    bits = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bits, encoding="ascii"))
    with guarded_streams():
        print("日本 \udcff", flush=True)
    assert bits.getvalue() == b"\\u65e5\\u672c \\udcff\n"
