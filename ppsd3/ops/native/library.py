"""Builds the C++ sources with the system's C++ compiler, once per machine, and loads it with ctypes.

The library lives in the user's cache (``$XDG_CACHE_HOME/ppsd3``, by default ``~/.cache/ppsd3``) in a directory named
by a hash of source, flags, compiler and CPU, so an update or another machine on a shared home builds its own. It is
built for the CPU at hand, whichever instructions that has (AVX-512, AVX2, or neither); ``$PPSD3_TARGET_FLAGS``, e.g.
``-march=x86-64-v3``, builds for another. Nothing here raises: without a compiler, or when anything is wrong,
:func:`load` says why and the pure Paddle paths serve.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from ...utils.logging import get_logger

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
FLAGS = ("-std=c++14", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
NAME = "libppsd3_kernels.so"
BUILD_SECONDS = 300

logger = get_logger(__name__)


class Unavailable(Exception):
    """Why there is no library; caught by :func:`load`."""


def load():
    """The library and its path, or None and the reason there is none.

    Returns:
        (ctypes.CDLL or None, str).
    """
    try:
        path, library = _cached() or _built()
        _share_threads(library)
        return library, str(path)
    except (Unavailable, OSError, AttributeError) as error:
        logger.info("native kernels are not used: %s", error)
        return None, str(error)


def _cached():
    try:
        path = _directory() / NAME
        # the hash comes first: mapping a truncated library would kill the process with a bus error
        if path.with_suffix(".sha256").read_text() == _sha256(path):
            return path, ctypes.CDLL(str(path))
    except OSError as error:
        logger.debug("no cached native kernels: %s", error)
    return None


def _built():
    directory = _directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=directory))
    except OSError as error:
        logger.debug("the cache %s cannot be written (%s); building for this process only", directory, error)
        directory = work = Path(tempfile.mkdtemp(prefix="ppsd3-"))
    try:
        built = work / ("new-" + NAME)
        _compile(built)
        digest = work / "digest"
        digest.write_text(_sha256(built))
        path = directory / NAME
        os.replace(built, path)  # whole or not at all, should two processes build at once
        os.replace(digest, path.with_suffix(".sha256"))
        return path, ctypes.CDLL(str(path))
    finally:
        shutil.rmtree(work, ignore_errors=True)  # a library that lies there stays mapped


def _compile(target):
    logger.info("compiling the native kernels into %s", target.parent)
    message = ""
    for flags in (_target_flags(), ()):  # a compiler that does not know this CPU still builds for the baseline
        command = [*_compiler(), *FLAGS, *flags, *map(str, SOURCES), "-o", str(target)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        except subprocess.SubprocessError as error:
            raise Unavailable(f"{command[0]} failed: {error}") from error
        if result.returncode == 0:
            return
        message = result.stderr.strip()[-500:]
    raise Unavailable(f"{command[0]} cannot compile the kernels: {message}")


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
