"""One logger for the package: ``logging.getLogger("ppsd3")`` and its children, silent by default below WARNING.

The functions are those of ``diffusers.utils.logging`` that set how much is said. Where it goes and how it looks are
matters of Python's ``logging``.
"""

from __future__ import annotations

import logging
from logging import (
    CRITICAL as CRITICAL,
    DEBUG as DEBUG,
    ERROR as ERROR,
    FATAL as FATAL,
    INFO as INFO,
    NOTSET as NOTSET,
    WARN as WARN,
    WARNING as WARNING,
)

from .errors import UnknownNameError

_PACKAGE = "ppsd3"
progress_bars = True  # whether pipelines show one


def get_logger(name: str | None = None) -> logging.Logger:
    """Logger called ``name``; pass ``__name__`` so that it is a child of ``ppsd3`` and inherits its level."""
    return logging.getLogger(name or _PACKAGE)


def get_verbosity() -> int:
    """The level below which nothing is said, e.g. ``logging.WARNING``."""
    return logging.getLogger(_PACKAGE).getEffectiveLevel()


def set_verbosity(verbosity: int) -> None:
    """Says nothing below this level."""
    logging.getLogger(_PACKAGE).setLevel(verbosity)


def set_verbosity_debug() -> None:
    """Says everything."""
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    """Says what is done, and more."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Says what may be wrong, as at first."""
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    """Says what went wrong, and nothing else."""
    set_verbosity(ERROR)


def enable_progress_bar() -> None:
    """Pipelines show a progress bar again."""
    global progress_bars
    progress_bars = True


def disable_progress_bar() -> None:
    """No pipeline shows a progress bar, unless its ``set_progress_bar_config(disable=False)`` says so."""
    global progress_bars
    progress_bars = False


def is_progress_bar_enabled() -> bool:
    """Whether pipelines show a progress bar."""
    return progress_bars


def __getattr__(name: str) -> None:
    raise UnknownNameError(
        f"{__name__} has no {name!r}. Handlers and formats are those of Python's logging.getLogger({_PACKAGE!r})."
    )
