"""Names of tests' parameters."""

import re


def steady(value):
    """The value's text, alike in each process: without addresses. Processes that share a run must agree on names."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", str(value))
