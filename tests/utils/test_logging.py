"""How much is said."""

import logging as standard

import pytest

from ppsd3.utils import logging
from ppsd3.utils.errors import UnknownNameError


@pytest.fixture(autouse=True)
def restored():
    logger = standard.getLogger("ppsd3")
    before = logger.level
    yield
    logger.setLevel(before)


def test_levels(caplog):
    child = logging.get_logger("ppsd3.somewhere")
    for name, level in (("debug", 10), ("info", 20), ("warning", 30), ("error", 40)):
        getattr(logging, f"set_verbosity_{name}")()
        assert logging.get_verbosity() == level == getattr(logging, name.upper())
        assert child.isEnabledFor(level) and not child.isEnabledFor(level - 1)
    logging.set_verbosity(logging.CRITICAL)
    assert not child.isEnabledFor(logging.ERROR)
    assert logging.get_logger() is standard.getLogger("ppsd3")


def test_the_rest_is_pythons():
    with pytest.raises(UnknownNameError, match=r"getLogger\('ppsd3'\)"):
        logging.enable_explicit_format()
