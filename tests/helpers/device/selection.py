"""Which tests run on the test device: those in ``tests/device/``, and of the default ones those about drawing."""

import pathlib

import pytest

TESTS = pathlib.Path(__file__).parents[2]

# Directories of default tests, each of which runs on the device unless ELSEWHERE names it.
SUITES = ("pipelines", "models", "transformers", "loaders", "adapters")

NOT_DEFAULT = {"parity", "slow", "gpu", "machine", "lint", "docs", "interop"}

# What cannot run there, by a part of "directory/file.py::test", with the reason. Nothing else is left out.
ELSEWHERE = {
    "test_offloading_needs_a_gpu": "there is a device to offload from: tests/device/test_offloading.py does it",
    "pipelines/test_prefetching.py": "stand-ins make a GPU of the computer's memory",
    "test_residency.py::test_parts_compute": "the computer's memory stands for the device, as in the next four",
    "test_residency.py::test_offloading_begins": "see above",
    "test_residency.py::test_an_interruption": "see above",
    "test_residency.py::test_a_loan_that": "see above",
    "test_residency.py::test_after_a_loan": "see above",
}


def has_tests(path):
    """Whether the directory or file has tests for the device."""
    parts = path.relative_to(TESTS).parts if TESTS in path.parents else ()
    return not parts or parts[0] in ("device", *SUITES)


def mark(items):
    """Gives the mark ``device`` to the default tests that run there."""
    for item in items:
        name = item.path.relative_to(TESTS).as_posix() + "::" + item.name
        default = not NOT_DEFAULT & {mark.name for mark in item.iter_markers()}
        if default and name.startswith(SUITES) and not any(part in name for part in ELSEWHERE):
            item.add_marker(pytest.mark.device)
