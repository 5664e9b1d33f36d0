"""Reads a file with a prompt on each line."""

from __future__ import annotations

import io

from ..utils.errors import InputError

_MOST = 1 << 24  # characters


def read_prompts(path: str) -> list[str]:
    """The lines of the file ``path`` (or of a pipe, as of the shell's ``<(...)``) that are not empty.

    Raises:
        InputError: it cannot be read, is not text in UTF-8, holds no prompt, or more than any such file.
    """
    option = f"--prompt-file {path}"
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(_MOST + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{option} cannot be read: {error}") from error
    if len(text) > _MOST:
        raise InputError(f"{option} has more than {_MOST:,} characters. Split it.")
    prompts = [line.strip() for line in io.StringIO(text) if line.strip()]
    if not prompts:
        raise InputError(f"{option} holds no prompt. Write one on each line.")
    return prompts
