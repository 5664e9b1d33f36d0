"""Parameters of tests: their names, and which of them the default run leaves out."""

import re

import pytest


def steady(value):
    """The value's text, alike in each process: without addresses. Processes that share a run must agree on names."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", str(value))


def thorough(*values):
    """Values that take long and rarely tell more than those that the default run has: for the stage ``machine``."""
    return [pytest.param(value, marks=pytest.mark.machine) for value in values]
