"""Versions, libraries, CPU, kernels and their cache, disks."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import metadata

from ... import __version__
from ...utils import gpu
from ...utils.device import available_memory, tune_process
from ...utils.sizes import in_words
from ...utils.user_directories import cache_directory, cache_path
from .findings import Finding

_NEEDED = ("numpy", "pillow", "tokenizers", "safetensors", "huggingface_hub", "tqdm")
_LITTLE_SPACE = 10**9  # bytes
_NEWEST_TRIED = (3, 3)


def is_too_old() -> bool:
    """Whether Paddle is older than what ppsd3 needs."""
    return gpu.build().is_too_old


def versions() -> Iterator[Finding]:
    """ppsd3, Python, Paddle and the libraries."""
    yield Finding("ppsd3", "ppsd3", __version__, value=__version__)
    yield Finding("python", "Python", platform.python_version(), value=platform.python_version())
    yield _paddle(gpu.build())
    yield from map(_package, _NEEDED)


def _paddle(build):
    kind = f"for CUDA {build.cuda} and cuDNN {build.cudnn}" if build.cuda else "for the CPU"
    state = f"{build.version}, built {kind}"
    if build.is_too_old:
        least = gpu.dotted(gpu.OLDEST_PADDLE)
        state += f"; ppsd3 needs {least} or newer"
        return Finding("paddle", "Paddle", state, "wrong", gpu.how_to_upgrade(build), build.version)
    if gpu.version_numbers(build.version)[:2] > _NEWEST_TRIED:
        state += f"; newer than {gpu.dotted(_NEWEST_TRIED)}, with which ppsd3 was tried last"
        return Finding("paddle", "Paddle", state, "note", "Look for a newer ppsd3 if something fails.", build.version)
    return Finding("paddle", "Paddle", state, value=build.version)


def _package(name):
    try:
        version = metadata.version(name)
        return Finding(f"package.{name}", name, version, value=version)
    except metadata.PackageNotFoundError:
        pass
    try:
        importlib.import_module("PIL" if name == "pillow" else name)
        return Finding(f"package.{name}", name, "there, of an unknown version")
    except ImportError as error:
        return Finding(f"package.{name}", name, str(error), "wrong", f"Run `pip install {name}`.")


def machine() -> Iterator[Finding]:
    """Threads and memory; compiler, kernels and their cache; disks and the bundled models."""
    from ...utils.hub import BUNDLED

    yield Finding("process", "this process", "; ".join(tune_process()) or "left as it is")
    memory = available_memory()
    yield Finding(
        "memory", "memory", f"{in_words(memory)} free", "note" if memory < _LITTLE_SPACE else "ok", value=memory
    )
    yield from _kernels()
    for name in ("shapes", "shapes-silhouette"):
        there, path = os.path.isdir(BUNDLED[name]), BUNDLED[name]
        remedy = "" if there else "Install ppsd3 again: its package data is incomplete."
        state = path if there else "missing"
        yield Finding(f"bundled.{name}", f"bundled model {name}", state, "ok" if there else "wrong", remedy)
    yield space("temporary", "directory of temporary files", tempfile.gettempdir())
    yield from _hub_cache()


def _kernels():
    """Compiler, cache, library, in the order in which one needs the other."""
    from ...ops import native

    needed = "wrong" if gpu.count() == 0 else "note"  # what computes on a GPU does without
    compiler, cache = _compiler(needed), _cache()
    yield compiler
    yield cache
    damaged = None if cache.verdict == "wrong" else _damaged_library()
    in_use, detail = native.status()
    if damaged is not None:
        state = f"{damaged} was damaged" + (" and has been built again" if in_use else "")
        remedy = "" if in_use else "It is built again once there is a compiler that works."
        yield Finding("kernels.library", "library of the kernels", state, "note" if in_use else needed, remedy, damaged)
    if in_use or "use_kernels" in detail:  # what the user turned off is no fault
        yield Finding("kernels", "native CPU kernels", detail, "ok" if in_use else "note", value=in_use)
    else:
        remedy = compiler.remedy or "Let CXX name another compiler."
        yield Finding("kernels", "native CPU kernels", f"not in use: {detail}", needed, remedy, False)


def _compiler(needed):
    from ...ops.native import library

    try:
        command = library.find_compiler()
    except library.Unavailable:
        remedy = "Install g++ (Debian, Ubuntu: `apt install g++`) or name another compiler by CXX."
        return Finding("compiler", "C++ compiler", "none of CXX, g++, c++, clang++ is there", needed, remedy)
    try:
        said = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = str(error)
    return Finding("compiler", "C++ compiler", f"{' '.join(command)}: {said.partition(chr(10))[0]}", value=command[0])


def _cache():
    path = cache_path()
    was_file = os.path.isfile(path)
    try:
        directory = cache_directory()
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        remedy = (
            "Until then each process builds its kernels anew. Make it a directory to which you and nobody else may "
            "write, or set XDG_CACHE_HOME to another."
        )
        return Finding("cache", "cache of the kernels", f"{path} cannot be used: {error}", "wrong", remedy, path)
    if was_file:
        return Finding(
            "cache", "cache of the kernels", f"{path} was a file; a directory is there now", "note", "", path
        )
    return space("cache", "cache of the kernels", directory)


def _damaged_library():
    """The path of a library that is not what was built; None if it is, or if there is none."""
    from ...ops.native import library

    try:
        state, path = library.inspect()
    except OSError:
        return None
    return path if state == "damaged" else None


def _hub_cache():
    try:
        from huggingface_hub import constants
    except ImportError:
        return
    if os.path.isdir(constants.HF_HUB_CACHE):
        yield space("cache.hub", "downloaded models", constants.HF_HUB_CACHE)


def space(key: str, what: str, path: str) -> Finding:
    """How much is free where ``path`` is."""
    free = shutil.disk_usage(path).free
    remedy = f"Make room in {path}." if free < _LITTLE_SPACE else ""
    return Finding(key, what, f"{path}, {in_words(free)} free", "note" if remedy else "ok", remedy, free)
