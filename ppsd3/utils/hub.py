"""Finds a checkpoint: a local directory, a bundled model's name, or a model on the Hugging Face hub or ModelScope.

From a hub only what is needed is downloaded: configurations, tokenizers, and one variant's safetensors of each
component; no pickles and no single-file checkpoints beside them. The hubs' own clients obey ``HF_ENDPOINT`` (a mirror),
``HF_HOME`` (the cache), ``HF_TOKEN``, ``HF_HUB_OFFLINE``; ``MODELSCOPE_ENDPOINT``, ``MODELSCOPE_CACHE`` and
``MODELSCOPE_API_TOKEN``. ``PPSD3_HUB=modelscope`` looks for "org/name" there; "modelscope:org/name" and
"huggingface:org/name" say it themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from typing import Any
from urllib.parse import unquote

from .elsewhere import nearest
from .errors import CheckpointNotFoundError, InputError
from .files import settled
from .keywords import HUB_VARIABLE, LOADING
from .logging import get_logger
from .pipeline_index import PIPELINE_INDEX, read_pipeline_index
from .recognition import explain
from .repositories import REPOSITORIES, HubUnreachable, Repository
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

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUNDLED = {
    "shapes": os.path.join(_PACKAGE, "shapes", "checkpoint"),  # a pipeline
    "shapes-silhouette": os.path.join(_PACKAGE, "shapes", "silhouette"),  # a ControlNet for it
}

_HUB_ID = re.compile(r"(?:(?P<hub>[a-z]+):)?(?P<repo>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)")
_HUB_FILE = re.compile(
    rf"(?:https?://(?P<host>[^/]+)/(?:models/)?)?{_HUB_ID.pattern}/"
    r"(?:(?:file/view|blob|resolve)/(?P<revision>[^/]+)/)?(?P<file>[^?]+\.safetensors)(?:\?.*)?"
)
# What people copy from a hub's page.
_PAGE = re.compile(
    r"https?://[^/]+/(?:models/)?(?P<repo>[\w.-]+/[\w.-]+)(?:/(?:tree|resolve|file/view)/[^/]+)?(?:/(?P<folder>[\w-]+))?/?"
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
    force_download: bool = False,
) -> str:
    """The local directory of a checkpoint, downloaded if it is on the hub.

    Args:
        name_or_path: an existing directory; else the bundled ``"shapes"`` (a pipeline) or
            ``"shapes-silhouette"`` (a ControlNet for it); else a hub id ``"org/name"`` or ``"modelscope:org/name"``. (A
            directory called ``shapes`` counts only if it holds a checkpoint; ``"./shapes"`` always does.)
        subfolder: from the hub, fetch this component only; ``""`` means a repository that is itself one
            component. Default None: the whole pipeline.
        variant: which weights to fetch, e.g. "fp16".
        cache_dir: default that of the hub's client, e.g. ``~/.cache/huggingface/hub``.
        revision: branch, tag or commit.
        local_files_only: use the cache and never the network, as ``HF_HUB_OFFLINE=1`` does.
        token: default the one that ``hf auth login`` or ``modelscope login`` stored.
        skip_components: components of the pipeline that are not fetched.
        force_download: download again what the cache has.

    Raises:
        CheckpointNotFoundError: nothing of that name, or not that variant; the message says what was tried.
        InputError: a hub that is unknown or whose client is not installed.
    """
    name = _as_path(name_or_path)
    if os.path.isdir(name) and (name not in BUNDLED or _holds_checkpoint(name)):
        return settled(name)
    if name in BUNDLED:
        return _bundled(name)
    if os.path.isfile(name):
        raise CheckpointNotFoundError(
            explain(name)
            or f"{name} is a file, and from_pretrained reads directories in diffusers format, with model_index.json. "
            "Load it with from_single_file."
        )
    match = None if os.path.islink(name) else _HUB_ID.fullmatch(name)
    if not match:
        page = _PAGE.fullmatch(name)
        if page:
            folder = f", subfolder={page['folder']!r}" if page["folder"] else ""
            raise CheckpointNotFoundError(f"{name} is a page. Pass the id of the repository: {page['repo']!r}{folder}.")
        raise CheckpointNotFoundError(
            explain(name)
            or f"There is no directory {name} (looked for {os.path.abspath(name)}), and it is neither a bundled model "
            f"({', '.join(BUNDLED)}) nor a hub id of the form 'org/name' (a folder in a repository is `subfolder`). "
            "Check the path."
        )
    repository = _repository(match["hub"])(match["repo"], cache_dir, revision, token, force_download)
    return _fetch(repository, subfolder, variant, frozenset(skip_components), local_files_only)


def resolve_file(
    path_or_link: PathLike,
    cache_dir: PathLike | None = None,
    revision: str | None = None,
    local_files_only: bool | None = None,
    token: str | None = None,
    force_download: bool = False,
) -> str:
    """The local path of one weights file, downloaded if it is a link to a hub.

    Args:
        path_or_link: an existing file; else ``"https://huggingface.co/org/name/blob/main/file"`` (any
            host), ``"org/name/file"`` or ``"modelscope:org/name/file"``, whose file may be in folders.
        cache_dir, revision, local_files_only, token, force_download: as in :func:`resolve_checkpoint`.

    Raises:
        CheckpointNotFoundError: no such file; the message says what was tried.
    """
    name = _as_path(path_or_link, "pretrained_model_link_or_path")
    name = _settled_file(name)
    if os.path.isfile(name):
        return name
    if os.path.isdir(name):
        raise CheckpointNotFoundError(
            explain(name)
            or f"{name} is a directory, and a single file is needed. Load a directory with from_pretrained."
        )
    match = None if os.path.islink(name) else _HUB_FILE.fullmatch(str(path_or_link))
    if not match:
        raise CheckpointNotFoundError(
            explain(name)
            or f"There is no file {name} (looked for {os.path.abspath(name)}), and it is no link to one on the hub "
            "(https://huggingface.co/org/name/blob/main/file.safetensors). Check the path."
        )
    hub = match["hub"] if match["host"] is None else "modelscope" if "modelscope" in match["host"] else "huggingface"
    made = _repository(hub)(match["repo"], cache_dir, match["revision"] or revision, token, force_download)
    return _fetch_file(made, unquote(match["file"]), local_files_only)


def _as_path(given: object, argument: str = "pretrained_model_name_or_path") -> str:
    if not isinstance(given, (str, os.PathLike)):
        raise InputError(f"{argument} is of the type {type(given).__name__}; pass a path, a hub id or a link.")
    return os.path.expanduser(os.fspath(given))


def _settled_file(path: str) -> str:
    """``path``, see :func:`ppsd3.utils.files.settled`."""
    directory, name = os.path.split(path)
    return os.path.join(settled(directory), name) if directory else path


def _repository(hub: str | None) -> type[Repository]:
    """The kind of repository on this hub; None: on the one that the environment names."""
    said, hub = hub, hub or os.environ.get(HUB_VARIABLE) or "huggingface"
    if hub == "aistudio":
        raise InputError(f"Models on AI Studio are not downloaded here. {LOADING['from_aistudio'].remedy}")
    if hub not in REPOSITORIES:
        where = f"{said}:" if said else f"{HUB_VARIABLE}={hub}"
        raise InputError(f"{where} names no hub; the hubs are {' and '.join(REPOSITORIES)}.")
    return REPOSITORIES[hub]


def resolve_small_file(
    name_or_path: PathLike, file: str, subfolder: str | None = None, local_files_only: bool | None = None, **hub: Any
) -> str:
    """The local path of one small file of a checkpoint, such as ``"config.json"``; of a hub's, it alone is downloaded.

    Args:
        name_or_path, subfolder, local_files_only, **hub: as in :func:`resolve_checkpoint`. A file is itself.
    """
    name = _as_path(name_or_path)
    inside = "/".join(part for part in (subfolder, file) if part)
    match = None if os.path.exists(name) or name in BUNDLED or name.endswith(".json") else _HUB_ID.fullmatch(name)
    if match:
        return _fetch_file(_repository(match["hub"])(match["repo"], **hub), inside, local_files_only)
    directory = resolve_checkpoint(name) if name in BUNDLED else name
    return _settled_file(os.path.join(directory, inside) if os.path.isdir(directory) else directory)


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


def _fetch(
    repository: Repository,
    subfolder: str | None,
    variant: str | None,
    skip: Collection[str],
    local_files_only: bool | None,
) -> str:
    """The local directory of a pipeline (``subfolder=None``) or of one component."""
    if local_files_only or repository.is_offline():
        return _cached(repository, subfolder, "the hub was not asked (offline mode)")
    try:
        files = repository.list_files()
    except HubUnreachable as error:
        directory = _cached(repository, subfolder, error.reason)
        _logger.warning("%s; using the copy in %s.", error.reason, directory)
        return directory
    if subfolder is None:
        if PIPELINE_INDEX not in files:
            raise repository.error(
                f"has no {PIPELINE_INDEX}, so it is no diffusers pipeline. If it is one component (a ControlNet, a "
                "VAE), load it with that class; pass a single-file checkpoint's link to from_single_file"
            )
        components = [name for name in _pipeline_components(repository) if name not in skip]
        return repository.download([PIPELINE_INDEX, *_select(repository, files, components, variant)])
    wanted = _select(repository, files, [subfolder.strip("/")], variant)
    if not wanted:
        folders = {os.path.dirname(file) for file in files}
        near = nearest(subfolder, folders, f"Its folders are {', '.join(sorted(folders - {''})) or 'none'}")
        raise repository.error(f"has no files in {subfolder or 'its root'!r}; check `subfolder`. {near}")
    return repository.download(wanted)


def _fetch_file(repository: Repository, file: str, local_files_only: bool | None) -> str:
    """The local path of one file of the repository; if the hub does not answer, of the copy in the cache."""
    offline, cached = local_files_only or repository.is_offline(), None
    try:
        if not offline:
            return os.path.join(repository.download([file]), file)
    except HubUnreachable:
        cached = repository.cached(file)
        if cached is None:
            raise
    cached = cached or repository.cached(file)
    if cached is None:
        raise repository.error(f"has no {file} in the cache, and the hub was not asked (offline mode). Connect first")
    return cached


def _select(repository, files, components, variant):
    try:
        return select_files(files, components, variant)
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(f"{repository.repo_id}: {error}") from None


def _pipeline_components(repository):
    """Names of the components that the repository's index lists."""
    index = read_pipeline_index(repository.download([PIPELINE_INDEX]))
    return [name for name, entry in index.items() if isinstance(entry, list) and entry and entry[-1]]


def _cached(repository, subfolder, reason):
    """The snapshot in the cache that holds the index, or the component's folder."""
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    for anchor in (PIPELINE_INDEX,) if subfolder is None else tuple(prefix + name for name in _ANCHORS):
        path = repository.cached(anchor)
        if path is not None:
            return path[: -len(anchor) - 1]
    raise CheckpointNotFoundError(
        f"{repository.repo_id}: there is no local directory of that name, the cache {repository.cache} has no copy"
        f"{' of ' + subfolder if subfolder else ''}, and {reason}. "
        f"Connect ({repository.remedy}), or copy the checkpoint here and pass its directory."
    )
