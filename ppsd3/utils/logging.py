"""One logger for the package: ``logging.getLogger("ppsd3")`` and its children, silent by default below WARNING."""

from __future__ import annotations

import logging


def get_logger(name: str) -> logging.Logger:
    """Logger called ``name``; pass ``__name__`` so that it is a child of ``ppsd3`` and inherits its level."""
    return logging.getLogger(name)
