"""Fixtures that several directories of tests share."""

import sys

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3 import tune_process

tune_process()

# modelscope has no release for Python 3.9 that knows an endpoint.
collect_ignore = [] if sys.version_info >= (3, 10) else ["utils/test_modelscope.py"]


def pytest_ignore_collect(collection_path, config):
    """Comparisons, and the libraries that they import, are left alone by a run that has none of them."""
    marks = config.getoption("markexpr")
    parity = "not parity" in marks and collection_path.name.endswith("_parity.py")
    interop = marks and ("interop" not in marks or "not interop" in marks) and collection_path.name == "interop"
    return True if parity or interop else None


@pytest.fixture(autouse=True)
def fixed_randomness():
    """A test sees the same random numbers each time, alone and in any order."""
    paddle.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Directory of a complete tiny pipeline that draws 64x64 pictures. Not to be changed: copy it first."""
    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    tiny.make_pipeline().save_pretrained(directory)
    return directory
