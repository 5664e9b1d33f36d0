"""What the tests of benches share."""

import pytest


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return str(tmp_path_factory.mktemp("bench"))
