"""What the cache of the Hugging Face hub holds of Stable Diffusion 3, and how it is removed."""

from __future__ import annotations

import os
from typing import NamedTuple

from .errors import CheckpointNotFoundError, PPSD3Error
from .pipeline_index import read_pipeline_index
from .temporary import discard

_PIPELINE = "StableDiffusion3"
_PREFIX = "models--"


class CachedModel(NamedTuple):
    """A repository in the cache."""

    repo_id: str
    bytes_on_disk: int
    path: str  # a directory in the cache


def cached_ids() -> list[str]:
    """Ids of the pipelines of Stable Diffusion 3, sorted. Only their indexes are read."""
    cache = cache_directory()
    found = []
    for folder in sorted(os.listdir(cache)) if os.path.isdir(cache) else ():
        snapshots = os.path.join(cache, folder, "snapshots")
        if folder.startswith(_PREFIX) and os.path.isdir(snapshots) and _holds_pipeline(snapshots):
            found.append(folder[len(_PREFIX) :].replace("--", "/", 1))
    return found


def cached_models() -> list[CachedModel]:
    """The pipelines of :func:`cached_ids` with the bytes that they take; every file is looked at."""
    from huggingface_hub import scan_cache_dir

    ids = cached_ids()
    repositories = scan_cache_dir(cache_directory()).repos if ids else ()
    return sorted(
        CachedModel(repo.repo_id, repo.size_on_disk, str(repo.repo_path))
        for repo in repositories
        if repo.repo_type == "model" and repo.repo_id in ids
    )


def remove_cached(model: CachedModel) -> None:
    """Removes all of a repository from the cache, at once; nothing outside of it.

    The hub's client removes commits by their hashes, and those of copies and forks may be alike.

    Raises:
        CheckpointNotFoundError: it is not there any more.
    """
    if not os.path.isdir(model.path):
        raise CheckpointNotFoundError(f"{model.repo_id} is not in the cache {cache_directory()} any more.")
    discard(model.path)


def cache_directory() -> str:
    """The cache of the hub's client: ``HF_HUB_CACHE``, or below ``HF_HOME``."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _holds_pipeline(snapshots):
    for snapshot in os.listdir(snapshots):
        try:
            index = read_pipeline_index(os.path.join(snapshots, snapshot))
        except (PPSD3Error, OSError):
            continue
        if str(index.get("_class_name", "")).startswith(_PIPELINE):
            return True
    return False
