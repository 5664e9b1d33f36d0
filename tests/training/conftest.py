"""A model and data for whole runs of training."""

import pytest
from helpers.training_runs import write_data


@pytest.fixture(scope="session")
def model(tiny_checkpoint):
    return str(tiny_checkpoint)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("training-data"))
