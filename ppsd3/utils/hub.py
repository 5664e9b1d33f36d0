"""Finds a checkpoint: a local directory, a bundled model's name, or a model on the Hugging Face hub."""

import os

from .errors import CheckpointNotFoundError


def resolve_checkpoint(name_or_path, **options):
    """The local directory of a checkpoint."""
    if os.path.isdir(name_or_path):
        return os.fspath(name_or_path)
    raise CheckpointNotFoundError(f"{name_or_path} does not exist.")
