"""One hostile input, and what was found wrong about how it was taken."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

KINDS = (
    "safetensors", "json", "tokenizers", "png", "lora", "textual_inversions", "pdparams", "single_files", "prompts",
    "arguments", "command_lines",
)  # fmt: skip


class Case(NamedTuple):
    """What is tried.

    Attributes:
        run: uses the input; raises what ppsd3 raises, or :class:`Wrong`.
        names: a refusal has one of these in its message: the file's path or the argument's name.
        changed: in a few words, for whoever reads a fault.
    """

    run: Callable[[], Any]
    names: tuple[str, ...]
    changed: str


class Wrong(Exception):
    """An input was accepted and used wrongly, or a refusal was not what it should be."""
