"""What a file is that is not what its name says, judged by its first bytes."""

from __future__ import annotations

_AGAIN = "Download it again."
# Beginning of the file -> what errors say of it after its name.
_BEGINNINGS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file: run `git lfs pull`."),
    (b"\xff\xfe", "is text in UTF-16. Save it in UTF-8."),
    (b"\xfe\xff", "is text in UTF-16. Save it in UTF-8."),
    (b"\x1f\x8b", "is compressed (gzip). Unpack it."),
    (b"PK\x03\x04", "is a zip archive, as torch's pickles are. " + _AGAIN),
    (b"GGUF", "is a GGUF file. " + _AGAIN),
)
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head")


def what_it_is(head: bytes) -> str | None:
    """What the rest of a sentence about a file that begins with ``head`` says, with the remedy; None if unknown."""
    if not head.strip():
        return "is empty. " + _AGAIN
    for beginning, words in _BEGINNINGS:
        if head.startswith(beginning):
            return words
    if head.lstrip().lower().startswith(_MARKUP):
        return "is a web page, not the file: the address was one that shows the file. " + _AGAIN
    return None
