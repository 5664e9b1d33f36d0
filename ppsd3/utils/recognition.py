"""Says what a file or a directory is that ppsd3 cannot use, and what to use in its place.

Whatever opens files asks here after a failure, so that good files cost nothing. What is known is in the tables of
:mod:`ppsd3.utils.signatures`; this module has the questions, and what there is to say of paths and directories.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from . import signatures
from .elsewhere import nearest
from .errors import CheckpointError, ConfigError, PPSD3Error
from .file_recognition import by_name, of_file, parsed, shown
from .pipeline_index import named_class
from .tensor_recognition import Found, of_class, of_tensors
from .types import PathLike

# What a path, a file and a text can raise; it must not take the place of the error that is to be explained.
_TROUBLE = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError, struct.error)
Problem = TypeVar("Problem", bound=PPSD3Error)

_ENTRIES = 2000  # of a directory that are looked at
_SMALL = 1 << 20  # bytes of a configuration
# File that makes a directory something -> its role.
_ROLES = {
    "model_index.json": "pipeline",
    "config.json": "network",
    "scheduler_config.json": "scheduler",
    "tokenizer_config.json": "tokenizer",
    "preprocessor_config.json": "image processor",
}
_FOLDERS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "scheduler", "tokenizer")


def explain(path: PathLike, wanted: str = "", owner: str = "") -> str | None:
    """What the file or directory at ``path`` is, in whole sentences with the remedy, or None if nothing is known.

    Never raises, whatever is there or not. For use after a failure: ``raise SomeError(explain(path) or message)``.

    Args:
        wanted: what the caller could have used: "pipeline", "network", "adapter", "word", "ip_adapter", "scheduler",
            "tokenizer", "configuration", or "any" of these. A path that is one needs no explanation. With
            "safetensors", the tensors in a file need none.
        owner: what the message calls it; by default the path.
    """
    try:
        path = os.path.expanduser(os.fsdecode(path))
        return _sentences(owner or path, _at(path, wanted), wanted)
    except _TROUBLE:
        return None


def explained(error: Problem, path: PathLike, wanted: str = "", owner: str = "") -> Problem:
    """What :func:`explain` says, as an error of the type of ``error``; this itself where there is nothing to say."""
    said = explain(path, wanted, owner)
    return error if said is None else _alike(error)(said)


@contextlib.contextmanager
def explaining(path: PathLike, wanted: str = "any") -> Iterator[None]:
    """Errors about checkpoints within the block say what the file at ``path`` is, if :func:`explain` knows."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        said = explain(path, wanted) if os.path.isfile(path) else None
        if said is None:
            raise
        raise _alike(error)(said) from error


def _alike(error: Problem) -> type[Problem]:
    """The type of ``error``, or the nearest of its bases that takes a message alone."""
    return next(kind for kind in type(error).__mro__ if kind.__module__ == PPSD3Error.__module__)


def explain_name(path: str) -> str | None:
    """What a file of this name is, as :func:`explain` says it, before it is downloaded."""
    return _sentences(path, by_name(path.lower()), "")


def explain_tensors(path: str, tensors: Mapping[str, Sequence[Any]], wanted: str = "") -> str | None:
    """What a file with these tensors is, as :func:`explain` says it.

    Args:
        path: what the message calls the file.
        tensors: name -> (dtype, shape, ...) as in :class:`~ppsd3.serialization.source.TensorInfo`; ("", ()) where
            neither is known.
    """
    return _sentences(path, of_tensors(tensors), wanted)


def explain_class(owner: str, class_name: object) -> str | None:
    """What ``owner`` is, as :func:`explain` says it, if ``class_name`` is a class of another model."""
    return _sentences(owner, of_class(class_name), "")


def explain_quantization(owner: str, config: Any) -> str | None:
    """What ``owner`` is, as :func:`explain` says it, by the ``quantization_config`` of its configuration."""
    return _sentences(owner, _quantized(config), "")


def _sentences(owner: str, found: Found | None, wanted: str) -> str | None:
    if found is None or (found.role and wanted in ("any", found.role)):
        return None
    return f"{owner} {found.what}. {found.remedy}"


def _at(path: str, wanted: str) -> Found | None:
    if not os.path.exists(path):
        return _absent(path, wanted)
    if os.path.isdir(path):
        return _directory(path, wanted)
    if not stat.S_ISREG(os.stat(path).st_mode):
        return Found("is no file, but a device, a pipe or a socket", "Pass a file.")
    return of_file(path, whole=wanted != "safetensors")


def _absent(path: str, wanted: str) -> Found | None:
    """Why there is nothing: a link into nothing, a download that has not ended, a name that is spelt otherwise."""
    link = _dangling(path)
    if link is not None:
        target = os.readlink(link)
        through = "" if link == path else f"goes through {link}, which "
        remedy = "Make the link anew, or pass the file that it should lead to."
        if "blobs" in target.replace("\\", "/").split("/"):
            remedy = "The hub's cache has lost the file: download it again, with force_download=True."
        return Found(f"{through}is a link to {target}, which does not exist", remedy)
    part = next((path + suffix for suffix in signatures.UNFINISHED if os.path.exists(path + suffix)), None)
    if part is not None:
        return Found(f"does not exist, but {part}, a download that has not ended", "Let it end, or download it again.")
    parent, name = os.path.split(path.rstrip("/\\"))
    if name in _ROLES and os.path.isdir(parent or "."):
        found = _directory(parent or ".", wanted or _ROLES[name])
        return None if found is None else found._replace(what=f"does not exist: {parent} {found.what}")
    while parent and not os.path.exists(parent):
        parent, name = os.path.split(parent)
    if os.path.isfile(parent):
        return Found(f"does not exist: {parent} is a file", "Pass the file, without folders in it.")
    said = nearest(name, _entries(parent or "."))
    return Found(f"does not exist: {parent or 'the current directory'} has no {name!r}", said) if said else None


def _dangling(path: str) -> str | None:
    """The first link on the way to ``path`` whose target does not exist."""
    way = list(
        itertools.accumulate(path.split(os.sep), os.path.join, initial=os.sep if path.startswith(os.sep) else "")
    )
    return next((place for place in way if os.path.islink(place) and not os.path.exists(place)), None)


def _entries(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in itertools.islice(entries, _ENTRIES))


# ---------------------------------------------------------------------------------------------------------- directories


def _directory(path: str, wanted: str) -> Found | None:
    for suffix, (what, remedy) in signatures.SUFFIXES.items():
        if path.rstrip("/\\").lower().endswith(suffix):
            return Found(f"is {what}", remedy)
    names = _entries(path)
    if not names:
        return Found("is an empty directory", "Download the checkpoint into it, or pass another one.")
    found = _unfinished(path, names) or _configured(path, names)
    kinds = (_of_cache, _too_high, _for_another_program, _loose_files)
    if found is not None and found.role and wanted in ("any", found.role):
        found, kinds = None, (_for_another_program, _loose_files) if wanted == "network" else ()
    return found or next(filter(None, (kind(path, names) for kind in kinds)), None)


def _unfinished(path: str, names: Sequence[str]) -> Found | None:
    for name in names:
        place = os.path.join(path, name)
        if os.path.islink(place) and not os.path.exists(place):
            found = _absent(place, "")
            return None if found is None else found._replace(what=f"is a directory in which {name} {found.what}")
    part = next((name for name in names if name.lower().endswith(signatures.UNFINISHED)), None)
    if part is None:
        return None
    return Found(f"is a directory with a download that has not ended, {part}", "Let it end, or download it again.")


def _configured(path: str, names: Sequence[str]) -> Found | None:
    """The directory of a pipeline or of one part, by its configuration."""
    name = next((name for name in _ROLES if name in names), None)
    config = None if name is None else _small_json(os.path.join(path, name))
    if name is None or config is None:
        return None
    class_name, role = named_class(config), _ROLES[name]
    found = of_class(class_name) or _quantized(config.get("quantization_config"))
    if found is not None:
        return found
    called = f" ({shown(class_name)})" if class_name else ""
    if role == "pipeline":
        parts = ", ".join(part for part in _FOLDERS if part in names) or "no parts"
        remedy = f"Load it with from_pretrained() of a pipeline, or a part of it with subfolder=; it has {parts}."
        return Found(f"is the directory of a whole pipeline{called}", remedy, role)
    parent = os.path.dirname(os.path.abspath(path))
    whole = f"Pass the pipeline's directory, {parent}, or load" if _is_pipeline(parent) else "Load"
    return Found(f"is the folder of one {role}{called}", f"{whole} it with from_pretrained() of its class.", role)


def _of_cache(path: str, names: Sequence[str]) -> Found | None:
    """A folder of the hub's cache: ``models--org--name``, or ``snapshots`` in it."""
    top = os.path.abspath(path) if "snapshots" in names else os.path.dirname(os.path.abspath(path))
    snapshots = os.path.join(top, "snapshots")
    if not os.path.isdir(snapshots) or os.path.abspath(path) not in (top, snapshots):
        return None
    hub_id = "/".join(os.path.basename(top).split("--")[1:])
    copies = [
        place for name in _entries(snapshots) for place in [os.path.join(snapshots, name)] if os.path.isdir(place)
    ]
    if not copies:
        return Found("is a folder of the hub's cache, without a copy in it", f"Download {hub_id or 'the model'} again.")
    by_id = f", or the hub id {hub_id!r}" if hub_id else ""
    return Found("is a folder of the hub's cache", f"Pass {max(copies, key=os.path.getmtime)}{by_id}.")


def _too_high(path: str, names: Sequence[str]) -> Found | None:
    """The parent of a checkpoint, or a pipeline's directory without its index."""
    inside = next((place for name in names for place in [os.path.join(path, name)] if _is_pipeline(place)), None)
    if inside is not None:
        return Found("is the parent of a pipeline's directory", f"Pass {inside}.")
    folders = [name for name in _FOLDERS if os.path.isdir(os.path.join(path, name))]
    if len(folders) > 1:
        return Found(
            f"has {', '.join(folders)}, but no model_index.json",
            "Download the repository's model_index.json too, or load the parts by their classes with subfolder=.",
        )
    part = next((name for name in names if os.path.isfile(os.path.join(path, name, "config.json"))), None)
    if part is None:
        return None
    return Found(f"is the parent of a network's folder, {part}", f"Pass subfolder={part!r} to the network's class.")


def _for_another_program(path: str, names: Sequence[str]) -> Found | None:
    found = next((signatures.DIRECTORY_FILES[name] for name in signatures.DIRECTORY_FILES if name in names), None)
    return None if found is None else Found(f"is the directory of {found[0]}", found[1])


def _loose_files(path: str, names: Sequence[str]) -> Found | None:
    """A directory of single files, or of others that ppsd3 does not read."""
    files = [name for name in names if name.endswith(".safetensors")]
    if files:
        place = os.path.join(path, files[0])
        return Found(
            f"is a directory of single files ({', '.join(files[:3])})", f"Load one with from_single_file({place!r})."
        )
    for name in names:
        place = os.path.join(path, name)
        found = of_file(place) if os.path.isfile(place) and not name.endswith((".json", ".txt", ".md")) else None
        if found is not None:
            return found._replace(what=f"is a directory without safetensors, in which {name} {found.what}")
    return None


def _is_pipeline(directory: str) -> bool:
    return os.path.isfile(os.path.join(directory, "model_index.json"))


def _small_json(path: str) -> dict[str, Any] | None:
    if not os.path.isfile(path) or os.path.getsize(path) > _SMALL:
        return None
    with open(path, "rb") as file:
        return parsed(file.read())


def _quantized(config: Any) -> Found | None:
    """What a network with this ``quantization_config`` is; None without one, and for int8 of ppsd3's."""
    method = config.get("quant_method") if isinstance(config, dict) else config
    known = signatures.QUANT_METHODS.get(method) if isinstance(method, str) else None
    if known is None:
        return None
    if isinstance(config, dict) and method == "bitsandbytes":
        kind = config.get("bnb_4bit_quant_type") or "4 bits"
        known += f", in {shown(kind)}" if config.get("load_in_4bit") else ", in int8"
    return Found(f"is quantized by {known}", signatures.ORIGINAL)
