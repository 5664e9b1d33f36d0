"""Fixtures that several directories of tests share."""

import sys

import numpy as np
import pytest
from helpers import device
from helpers.device import selection

# modelscope has no release for Python 3.9 that knows an endpoint.
collect_ignore = [] if sys.version_info >= (3, 10) else ["utils/test_modelscope.py"]


def pytest_configure(config):
    """Paddle is imported here first, because it loads a device as it is imported."""
    if device.is_selected(config.getoption("markexpr")):
        device.load()
    from ppsd3 import tune_process

    tune_process()


def pytest_ignore_collect(collection_path, config):
    """Comparisons, and the libraries that they import, are left alone by a run that has none of them."""
    marks = config.getoption("markexpr")
    on_device = device.is_selected(marks)
    parity = ("not parity" in marks or on_device) and collection_path.name.endswith("_parity.py")
    interop = marks and ("interop" not in marks or "not interop" in marks) and collection_path.name == "interop"
    elsewhere = on_device and not selection.has_tests(collection_path)
    return True if parity or interop or elsewhere else None


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(config, items):
    if device.is_selected(config.getoption("markexpr")):
        selection.mark(items)


@pytest.fixture(autouse=True)
def fixed_randomness(pytestconfig):
    """A test sees the same random numbers each time, alone and in any order; on the test device, that is the one."""
    import paddle

    if device.is_selected(pytestconfig.getoption("markexpr")):
        paddle.set_device(device.NAME)
    paddle.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Directory of a complete tiny pipeline that draws 64x64 pictures. Not to be changed: copy it first."""
    from helpers import tiny

    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    tiny.make_pipeline().save_pretrained(directory)
    return directory
