"""Fixtures that several directories of tests share."""

import pytest
from helpers import tiny


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Directory of a complete tiny pipeline that draws 64x64 pictures. Not to be changed: copy it first."""
    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    tiny.make_pipeline().save_pretrained(directory)
    return directory
