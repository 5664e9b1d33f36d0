"""Finds a checkpoint: a local directory, a bundled model's name, or a model on the Hugging Face hub.

From the hub only what is needed is downloaded: configurations, tokenizers, and one variant's safetensors of each
component; no pickles and no single-file checkpoints beside them. ``huggingface_hub`` itself obeys
``HF_ENDPOINT`` (a mirror), ``HF_HOME`` (the cache), ``HF_TOKEN`` and ``HF_HUB_OFFLINE``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable

from .errors import CheckpointNotFoundError
from .logging import get_logger
from .types import PathLike
from .weight_names import (
    PICKLE_SUFFIXES,
    STEMS,
    available_variants,
    choose_variants,
    describe_variants,
    parse_weight_name,
)

_logger = get_logger(__name__)

PIPELINE_INDEX = "model_index.json"
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUNDLED = {
    "shapes": os.path.join(_PACKAGE, "shapes", "checkpoint"),  # a pipeline
    "shapes-silhouette": os.path.join(_PACKAGE, "shapes", "silhouette"),  # a ControlNet for it
}

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")
_HUB_FILE = re.compile(
    rf"(?:https?://[^/]+/)?(?P<repo>{_HUB_ID.pattern})/(?:(?:blob|resolve)/(?P<revision>[^/]+)/)?"
    r"(?P<file>[^?]+\.safetensors)(?:\?.*)?"
)
_SMALL_SUFFIXES = (".json", ".txt", ".model")
# Files that a component's folder has: by one of these it is found in the cache without asking the hub.
_ANCHORS = (
    *("config.json", "scheduler_config.json", "preprocessor_config.json"),
    *("tokenizer_config.json", "tokenizer.json", "vocab.json", "spiece.model"),
)


def resolve_checkpoint(
    name_or_path: PathLike,
    subfolder: str | None = None,
    variant: str | None = None,
    cache_dir: PathLike | None = None,
    revision: str | None = None,
    local_files_only: bool | None = None,
    token: str | None = None,
    skip_components: Iterable[str] = (),
) -> str:
    """The local directory of a checkpoint, downloaded if it is on the hub.

    Args:
        name_or_path: an existing directory; else the bundled ``"shapes"`` (a pipeline) or
            ``"shapes-silhouette"`` (a ControlNet for it); else a hub id ``"org/name"``. (A directory called ``shapes``
            counts only if it holds a checkpoint; ``"./shapes"`` always does.)
        subfolder: from the hub, fetch this component only; ``""`` means a repository that is itself one
            component. Default None: the whole pipeline.
        variant: which weights to fetch, e.g. "fp16".
        cache_dir: default the hub's, ``~/.cache/huggingface/hub``.
        revision: branch, tag or commit.
        local_files_only: use the cache and never the network, as ``HF_HUB_OFFLINE=1`` does.
        token: default the one that ``hf auth login`` stored.
        skip_components: components of the pipeline that are not fetched.

    Raises:
        CheckpointNotFoundError: nothing of that name, or not that variant; the message says what was tried.
    """
    name = os.path.expanduser(os.fspath(name_or_path))
    if os.path.isdir(name) and (name not in BUNDLED or _holds_checkpoint(name)):
        return name
    if name in BUNDLED:
        return _bundled(name)
    if os.path.isfile(name):
        raise CheckpointNotFoundError(
            f"{name} is a file, and from_pretrained reads directories in diffusers format, with model_index.json. Load "
            "it with from_single_file."
        )
    if not _HUB_ID.fullmatch(name):
        raise CheckpointNotFoundError(
            f"There is no directory {name} (looked for {os.path.abspath(name)}), and it is neither a bundled model "
            f"({', '.join(BUNDLED)}) nor a hub id of the form 'org/name'. Check the path."
        )
    return _HubRepository(name, cache_dir, revision, token).fetch(
        subfolder, variant, frozenset(skip_components), local_files_only
    )


def resolve_file(
    path_or_link: PathLike,
    cache_dir: PathLike | None = None,
    revision: str | None = None,
    local_files_only: bool | None = None,
    token: str | None = None,
) -> str:
    """The local path of one weights file, downloaded if it is a link to the hub.

    Args:
        path_or_link: an existing file; else ``"https://huggingface.co/org/name/blob/main/file"`` (any
            host) or ``"org/name/file"``, whose file may be in folders.
        cache_dir, revision, local_files_only, token: as in :func:`resolve_checkpoint`.

    Raises:
        CheckpointNotFoundError: no such file; the message says what was tried.
    """
    name = os.path.expanduser(os.fspath(path_or_link))
    if os.path.isfile(name):
        return name
    if os.path.isdir(name):
        raise CheckpointNotFoundError(
            f"{name} is a directory, and a single file is needed. Load a directory with from_pretrained."
        )
    match = _HUB_FILE.fullmatch(str(path_or_link))
    if not match:
        raise CheckpointNotFoundError(
            f"There is no file {name} (looked for {os.path.abspath(name)}), and it is no link to one on the hub "
            "(https://huggingface.co/org/name/blob/main/file.safetensors). Check the path."
        )
    repository = _HubRepository(match["repo"], cache_dir, match["revision"] or revision, token)
    return repository.fetch_file(match["file"], local_files_only)


def select_files(files: Iterable[str], components: Iterable[str], variant: str | None) -> list[str]:
    """Those of a repository's ``files`` to download for ``components`` (folder names, ``""`` is the root).

    Raises:
        CheckpointNotFoundError: a component has weights, but not of this variant, or as a pickle only.
    """
    chosen = []
    names_of = {component: _names_in(files, component) for component in components}
    variants = choose_variants(names_of, variant)
    for component, names in names_of.items():
        prefix, variant = f"{component}/" if component else "", variants[component]
        parsed = {name: parse_weight_name(name) for name in names}
        weights = {name: weight for name, weight in parsed.items() if weight}
        stems = [stem for stem in STEMS if any(w.stem == stem and w.variant == variant for w in weights.values())]
        if weights and not stems:
            raise CheckpointNotFoundError(
                f"The component {component or 'at the root'} has no weights with variant={variant!r}; "
                f"it has {describe_variants(available_variants(names))}: pass one of these."
            )
        pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
        if pickles and not weights:
            raise CheckpointNotFoundError(
                f"The component {component or 'at the root'} has only a pickle for weights ({pickles[0]}), and ppsd3 "
                "opens safetensors only. Look for a revision (`revision=`) or a copy with safetensors."
            )
        wanted = [name for name, w in weights.items() if (w.stem, w.variant) == (stems[0], variant)]
        small = [name for name in names if name not in weights and name.endswith(_SMALL_SUFFIXES)]
        chosen += [prefix + name for name in sorted(small) + sorted(wanted)]
    return chosen


def _names_in(files, folder):
    """Names of the files directly in ``folder``, ``""`` for the root."""
    prefix = f"{folder}/" if folder else ""
    return [f[len(prefix) :] for f in files if f.startswith(prefix) and "/" not in f[len(prefix) :]]


def _holds_checkpoint(directory):
    return any(name in (PIPELINE_INDEX,) + _ANCHORS or name.endswith(".safetensors") for name in os.listdir(directory))


def _bundled(name):
    directory = BUNDLED[name]
    if not os.path.isdir(directory) or not _holds_checkpoint(directory):
        raise CheckpointNotFoundError(
            f"The bundled model {name!r} is not in this installation ({directory} is missing or incomplete). "
            f"Install ppsd3 from a release or a complete clone, or train it with examples/train_shapes.py."
        )
    return directory


class _HubRepository:
    """One repository on the hub, and its copy in the cache."""

    def __init__(self, repo_id: str, cache_dir: PathLike | None, revision: str | None, token: str | None) -> None:
        self.repo_id = repo_id
        self._options = {"cache_dir": cache_dir, "revision": revision}
        self._token = token

    def fetch(
        self, subfolder: str | None, variant: str | None, skip: Iterable[str], local_files_only: bool | None
    ) -> str:
        from huggingface_hub import constants

        if local_files_only or constants.HF_HUB_OFFLINE:
            return self._cached(subfolder, "the hub was not asked (offline mode)")
        try:
            files = self._list_files()
        except _HubUnreachable as error:
            directory = self._cached(subfolder, error.reason)
            _logger.warning("%s; using the copy in %s.", error.reason, directory)
            return directory
        if subfolder is None:
            if PIPELINE_INDEX not in files:
                raise self._error(
                    f"has no {PIPELINE_INDEX}, so it is no diffusers pipeline. If it is one component (a ControlNet, a "
                    "VAE), load it with that class; pass a single-file checkpoint's link to from_single_file"
                )
            components = [name for name in self._pipeline_components() if name not in skip]
            return self._download([PIPELINE_INDEX] + self._select(files, components, variant))
        wanted = self._select(files, [subfolder.strip("/")], variant)
        if not wanted:
            raise self._error(f"has no files in {subfolder or 'its root'!r}. Check `subfolder`")
        return self._download(wanted)

    def fetch_file(self, file: str, local_files_only: bool | None) -> str:
        """The local path of one file of the repository; if the hub does not answer, of the copy in the cache."""
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

        if local_files_only or constants.HF_HUB_OFFLINE:
            cached = try_to_load_from_cache(self.repo_id, file, **self._options)
            if not isinstance(cached, str):
                raise self._error(
                    f"has no {file} in the cache, and the hub was not asked (offline mode). Connect first"
                )
            return cached
        with self._explained_errors():
            return hf_hub_download(self.repo_id, file, token=self._token, **self._options)

    def _select(self, files, components, variant):
        try:
            return select_files(files, components, variant)
        except CheckpointNotFoundError as error:
            raise CheckpointNotFoundError(f"{self.repo_id}: {error}") from None

    def _error(self, what):
        return CheckpointNotFoundError(
            f"The hub repository {self.repo_id} {what}. (There is no local directory of that name either.)"
        )

    def _list_files(self):
        """Names of all files in the repository. Raises _HubUnreachable if the hub does not answer."""
        from huggingface_hub import HfApi

        with self._explained_errors():
            info = HfApi(token=self._token).model_info(self.repo_id, revision=self._options["revision"])
        return [sibling.rfilename for sibling in info.siblings or ()]

    def _pipeline_components(self):
        """Names of the components that the repository's index lists."""
        from huggingface_hub import hf_hub_download

        with self._explained_errors():
            path = hf_hub_download(self.repo_id, PIPELINE_INDEX, token=self._token, **self._options)
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
        return [name for name, entry in index.items() if isinstance(entry, list) and entry and entry[-1]]

    def _download(self, files):
        from huggingface_hub import snapshot_download

        with self._explained_errors():
            return snapshot_download(self.repo_id, allow_patterns=files, token=self._token, **self._options)

    def _cached(self, subfolder, reason):
        """The snapshot in the cache that holds the index, or the component's folder."""
        from huggingface_hub import constants, try_to_load_from_cache

        prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        anchors = (PIPELINE_INDEX,) if subfolder is None else tuple(prefix + name for name in _ANCHORS)
        for anchor in anchors:
            path = try_to_load_from_cache(self.repo_id, anchor, **self._options)
            if isinstance(path, str):
                return path[: -len(anchor) - 1]
        cache = self._options["cache_dir"] or constants.HF_HUB_CACHE
        raise CheckpointNotFoundError(
            f"{self.repo_id}: there is no local directory of that name, the cache {cache} has no copy"
            f"{' of ' + subfolder if subfolder else ''}, and {reason}. "
            "Connect (HF_ENDPOINT may name a mirror), or copy the checkpoint here and pass its directory."
        )

    @contextlib.contextmanager
    def _explained_errors(self):
        """Turns what huggingface_hub raises into a CheckpointNotFoundError with its remedy."""
        from huggingface_hub import constants, utils

        page = f"{constants.ENDPOINT}/{self.repo_id}"
        try:
            yield
        except utils.GatedRepoError as error:
            raise self._error(
                f"is gated: accept its licence at {page}, then run `hf auth login`, set HF_TOKEN, or pass `token`"
            ) from error
        except utils.RepositoryNotFoundError as error:
            raise self._error(
                f"does not exist at {page}, or is private. Check the spelling, or pass `token` if it is private"
            ) from error
        except utils.RevisionNotFoundError as error:
            raise self._error(f"has no revision {self._options['revision']!r}. Check `revision`") from error
        except utils.LocalEntryNotFoundError as error:  # what a failed download of a file that is not cached becomes
            raise _HubUnreachable(f"{page} cannot be reached ({error})") from error
        except utils.EntryNotFoundError as error:
            raise self._error(f"does not give a file that it lists ({error}). Try again") from error
        # Failed connections are of requests' or httpx's types, by the version of huggingface_hub.
        except Exception as error:
            raise _HubUnreachable(f"{page} cannot be reached ({type(error).__name__}: {error})") from error


class _HubUnreachable(CheckpointNotFoundError):
    """The hub does not answer, and the cache can stand in for it. ``reason`` is the first part of the message."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}. Try again (a download goes on where it stopped), set HF_ENDPOINT to a mirror, "
            "or copy the checkpoint here and pass its directory."
        )
        self.reason = reason
