"""Context variables: values that belong to what runs in a block, and so to one thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeVar

_Value = TypeVar("_Value")


@contextlib.contextmanager
def held(variable: ContextVar[_Value], value: _Value) -> Iterator[None]:
    """Within the block, ``variable`` has ``value``, for this thread alone."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
