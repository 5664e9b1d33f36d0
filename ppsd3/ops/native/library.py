"""Builds the C++ sources with the system's C++ compiler, once per machine, and loads the library with ctypes.

The library lives in the user's cache (``$XDG_CACHE_HOME/ppsd3``, by default ``~/.cache/ppsd3``) in a directory named
by a hash of source, flags, compiler and CPU, so an update or another machine on a shared home builds its own. It is
built for the CPU at hand, whichever instructions that has (AVX-512, AVX2, or neither); ``$PPSD3_TARGET_FLAGS``, e.g.
``-march=x86-64-v3``, builds for another, and takes any other flag of the compiler too. Nothing here raises: without a
compiler, or when anything is wrong, :func:`load` says why and the pure Paddle paths serve.

Processes that start together build once: one holds the lock, the others wait and load what it built. Threads of one
process are the caller's to lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...utils.device import usable_cores
from ...utils.logging import get_logger

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
FLAGS = ("-std=c++14", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
NAME = "libppsd3_kernels.so"
WORK = "build-"  # what a directory of unfinished files is called
BUILD_SECONDS = 300

logger = get_logger(__name__)


class Unavailable(Exception):
    """Why there is no library; caught by :func:`load`."""


def load() -> tuple[ctypes.CDLL | None, str]:
    """The library and its path, or None and the reason there is none."""
    try:
        library, detail = _cached() or _built()
        _share_threads(library)
        return library, detail
    except (Unavailable, OSError, AttributeError) as error:
        logger.info("native kernels are not used: %s", error)
        return None, str(error)


def _cached():
    try:
        path = _directory() / NAME
        # the hash comes first: mapping a truncated library would kill the process with a bus error
        if path.with_suffix(".sha256").read_text() == _sha256(path):
            return ctypes.CDLL(str(path)), str(path)
    except OSError as error:
        logger.debug("no cached native kernels: %s", error)
    return None


def _built():
    directory = _directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _process_lock(directory / "lock") as alone:
            for leftover in directory.glob(WORK + "*") if alone else ():  # of a build that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            return _cached() or _installed(directory)
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="ppsd3-"))
        try:
            library, path = _installed(temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # a library that lay there stays mapped
        return library, f"{path}, for this process only: the cache {directory} cannot be used ({error})"


def _installed(directory):
    """Builds the library in ``directory``, where it appears whole or not at all, and loads it."""
    work, path = Path(tempfile.mkdtemp(prefix=WORK, dir=directory)), directory / NAME
    try:
        built, digest = work / NAME, work / "digest"
        _compile(built)
        digest.write_text(_sha256(built))
        os.replace(built, path)
        os.replace(digest, path.with_suffix(".sha256"))
        return ctypes.CDLL(str(path)), str(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _process_lock(path):
    """Holds ``path`` against other processes; the system gives it back when its holder ends, however that ends.

    A holder that takes longer than a build may is not waited for, and neither is one where the system or the file
    system has no such locks: two builds at once cost time and nothing else.

    Yields:
        bool: whether it is held.
    """
    held = False
    with open(path, "w") as file:
        try:
            import fcntl

            end = time.monotonic() + BUILD_SECONDS
            while not held and time.monotonic() < end:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held = True
                except BlockingIOError:
                    time.sleep(0.1)
        except (ImportError, OSError) as error:
            logger.debug("no lock: %s", error)
        yield held


def _compile(target):
    compiler, cores = _compiler(), usable_cores()
    logger.warning("Compiling CPU kernels, once, about %d s (into %s)", max(5, 15 // cores), target.parent.parent)
    objects = [target.with_name(source.stem + ".o") for source in SOURCES]
    for flags in (_target_flags(), ()):  # a compiler that does not know this CPU still builds for the baseline
        command = [*compiler, *FLAGS, *flags]
        commands = [[*command, "-c", str(source), "-o", str(built)] for source, built in zip(SOURCES, objects)]
        with ThreadPoolExecutor(cores) as pool:
            failure = next(filter(None, pool.map(_failure, commands)), None)
        failure = failure or _failure([*command, "-shared", *map(str, objects), "-o", str(target)])
        if failure is None:
            return
    raise Unavailable(f"{compiler[0]} cannot compile the kernels: {failure}")


def _failure(command):
    """Runs a command of the compiler; returns what it has to say if it fails, else None."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except subprocess.SubprocessError as error:
        return str(error)
    return None if result.returncode == 0 else result.stderr.strip()[-500:] or f"status {result.returncode}"


def _compiler():
    """The command of ``$CXX``, or of the first compiler on the path."""
    named = os.environ.get("CXX", "").split()
    if named and shutil.which(named[0]):
        return named
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise Unavailable("no C++ compiler was found (CXX, g++, c++, clang++); install one to make CPU work faster")


def _target_flags():
    if "PPSD3_TARGET_FLAGS" in os.environ:
        return tuple(os.environ["PPSD3_TARGET_FLAGS"].split())
    return ("-mcpu=native",) if platform.machine() in ("aarch64", "arm64") else ("-march=native",)


def _directory():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    identity = [
        *FLAGS,
        *_target_flags(),
        os.environ.get("CXX", ""),
        platform.system(),
        platform.machine(),
        _cpu_flags(),
    ]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES + HEADERS) + "\n".join(identity).encode())
    return Path(base) / "ppsd3" / key.hexdigest()[:16]


def _cpu_flags():
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _share_threads(library):
    """Hands the library the OpenMP runtime that Paddle uses, so that both have one thread pool and one setting.

    Linking with ``-fopenmp`` would leave to the order of imports which of the runtimes in the process (Paddle's,
    torch's, the system's) the kernels get. Without a runtime they work on the calling thread.
    """
    import paddle

    directory = Path(paddle.__file__).parent / "libs"
    for path in [*sorted(directory.glob("libiomp5*")), *sorted(directory.glob("libgomp*")), "libgomp.so.1"]:
        try:
            runtime = ctypes.CDLL(str(path))
            fork, threads = (
                ctypes.cast(f, ctypes.c_void_p) for f in (runtime.GOMP_parallel, runtime.omp_get_max_threads)
            )
        except (OSError, AttributeError):
            continue
        library.ppsd3_set_runtime(fork, threads)
        return
