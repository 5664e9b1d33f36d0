"""Check the installation and this machine, and directories for what interrupted saves have left.

A save that was interrupted when all was written is completed. What others left is named, and removed with --clean,
unless the process that makes it is alive.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

from .. import __version__
from ..utils.errors import InputError
from ..utils.files import bytes_in, is_interrupted, settled
from ..utils.temporary import find_leftovers, remove_leftovers

_NEEDED = ("numpy", "pillow", "tokenizers", "safetensors", "huggingface_hub", "tqdm")
_LITTLE_SPACE = 10**9  # bytes
# What version 0.1.0 left: no lock says whether its process is alive.
_UNLOCKED = re.compile(r".+\.[a-z0-9_]{8}\.tmp(\.former)?")


class Finding(NamedTuple):
    """What was looked at, how it is, and whether something is wrong: "ok", "note" or "wrong"."""

    what: str
    state: str
    verdict: str = "ok"


def add_arguments(parser):
    parser.add_argument("directories", nargs="*", metavar="DIR", help="where checkpoints or pictures are saved")
    parser.add_argument("--clean", action="store_true", help="remove what interrupted saves left in the directories")


def run(arguments):
    if arguments.clean and not arguments.directories:
        raise InputError("--clean removes what is left in directories, and none is named. Name them: `--clean DIR`.")
    for directory in arguments.directories:
        if not os.path.isdir(directory):
            raise InputError(f"{directory} is no directory. Name one in which something was saved.")
    wrong = False
    findings = (_installation(), *(_directory(name, arguments.clean) for name in arguments.directories))
    for finding in (finding for some in findings for finding in some):
        wrong = wrong or finding.verdict == "wrong"
        print(f"{finding.verdict:5} {finding.what}: {finding.state}", flush=True)
    return 1 if wrong else 0


def _installation() -> Iterator[Finding]:
    import paddle

    from ..ops import native
    from ..utils.device import tune_process
    from ..utils.hub import BUNDLED

    yield Finding("ppsd3", f"{__version__}, Paddle {paddle.__version__} on {paddle.get_device()}")
    yield from map(_package, _NEEDED)
    yield Finding("this process", "; ".join(tune_process()) or "left as it is")
    in_use, detail = native.status()
    yield Finding("native CPU kernels", detail, "ok" if in_use else "note")
    yield from _cache()
    for name in ("shapes", "shapes-silhouette"):
        there = os.path.isdir(BUNDLED[name])
        yield Finding(f"bundled model {name}", BUNDLED[name] if there else "missing", "ok" if there else "note")
    yield _space("directory of temporary files", tempfile.gettempdir())


def _package(name):
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        pass
    try:
        importlib.import_module("PIL" if name == "pillow" else name)
        return Finding(name, "there, of an unknown version")
    except ImportError as error:
        return Finding(name, f"{error}; pip install {name}", "wrong")


def _cache():
    from ..utils.user_directories import cache_directory

    try:
        yield _space("cache of the kernels", cache_directory())
    except OSError as error:
        yield Finding("cache of the kernels", str(error), "note")


def _space(what, path):
    free = shutil.disk_usage(path).free
    little = free < _LITTLE_SPACE
    return Finding(what, f"{path}, {free / 1e9:.1f} GB free", "note" if little else "ok")


def _directory(directory: str, clean: bool) -> Iterator[Finding]:
    """What saves have left in a directory, and in its parent, where directories wait that are to take its place."""
    real, found = os.path.realpath(directory), False
    for folder in (os.path.dirname(real), *_folders(real)):
        for finding in _folder(folder, clean):
            found = True
            yield finding
    if not found:
        yield _space(directory, real)


def _folders(directory):
    for folder, names, _ in os.walk(directory):
        yield folder
        left = {os.path.basename(path) for path in find_leftovers(folder)}
        names[:] = [name for name in names if name not in left]


def _folder(folder, clean):
    if is_interrupted(folder):
        settled(folder)
        done = not is_interrupted(folder)
        yield Finding(
            folder,
            f"an interrupted save {'is complete now' if done else 'cannot be completed: no permission'}",
            "note" if done else "wrong",
        )
    removed = remove_leftovers(folder) if clean else []
    for path in removed:
        yield Finding(path, "left by an interrupted save, removed", "note")
    for path in find_leftovers(folder):
        remedy = "cannot be removed" if clean else "`ppsd3 doctor --clean` removes it"
        yield Finding(path, f"left by an interrupted save ({bytes_in(path) / 1e6:.1f} MB); {remedy}", "wrong")
    for name in sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else ():
        if _UNLOCKED.fullmatch(name) and not name.startswith("."):
            state = "looks like what version 0.1.0 left; remove it yourself when nothing is being saved"
            yield Finding(os.path.join(folder, name), state, "note")
