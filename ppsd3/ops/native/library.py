"""Builds the C++ sources with the system's C++ compiler, once per machine, and loads the library with ctypes.

The library lives in the user's cache (:func:`ppsd3.utils.user_directories.cache_directory`), where nobody else may
write, in a directory named by a hash of source, flags, compiler and CPU, so an update or another machine on a shared
home builds its own. The ones that were used last are kept. It is
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
import re
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...utils import temporary
from ...utils.device import usable_cores
from ...utils.files import atomic_write
from ...utils.logging import get_logger
from ...utils.user_directories import cache_directory, private_directory, read_own_file

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
FLAGS = ("-std=c++14", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
NAME = "libppsd3_kernels.so"
WORK = "build-"  # what a directory of unfinished files is called
LOCK = "lock"
BUILD_SECONDS = 300
MOST_BUILDS = 8  # that are kept, of some two megabytes each

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


def inspect() -> tuple[str, str]:
    """("whole", "damaged" or "absent", path) of the library that is in the cache; nothing is built or loaded.

    Raises:
        OSError: the cache cannot be used.
    """
    path = os.path.join(_directory(), NAME)
    if not os.path.lexists(path):
        return "absent", path
    return ("whole" if _is_whole(path) else "damaged"), path


def _is_whole(path):
    """The hash is compared first: mapping a truncated library would kill the process with a bus error."""
    try:
        return read_own_file(_digest_of(path)) == _sha256(read_own_file(path))
    except FileNotFoundError:
        return False


def _cached():
    try:
        path = os.path.join(private_directory(_directory()), NAME)
        if _is_whole(path):
            os.utime(os.path.dirname(path))
            return ctypes.CDLL(path), path
    except OSError as error:
        logger.debug("no cached native kernels: %s", error)
    return None


def _built():
    try:
        directory = private_directory(_directory())
        with _process_lock(os.path.join(directory, LOCK)) as alone:
            for leftover in Path(directory).glob(WORK + "*") if alone else ():  # of a build that was killed
                temporary.remove(str(leftover))
            found = _cached() or _installed(directory)
    except OSError as error:
        logger.warning("The cache of the kernels cannot be used, so they are built for this process only: %s", error)
        directory = tempfile.mkdtemp(prefix="ppsd3-")
        try:
            library, path = _installed(directory)
        finally:
            temporary.remove(directory)  # a library that lay there stays mapped
        return library, f"{path}, for this process only: the cache cannot be used ({error})"
    _remove_old_builds(directory)
    return found


def _installed(directory):
    """Builds the library in ``directory``, where it appears whole or not at all, and loads it."""
    work, path = tempfile.mkdtemp(prefix=WORK, dir=directory), os.path.join(directory, NAME)
    try:
        built = Path(work) / NAME
        _compile(built)
        content = built.read_bytes()
        for name, written in ((path, content), (_digest_of(path), _sha256(content))):
            if not os.path.isfile(name) or os.path.islink(name):
                temporary.remove(name)  # whatever is there in the place of the file
            with atomic_write(name) as file:
                file.write(written)
            os.chmod(name, 0o600)
        return ctypes.CDLL(path), path
    finally:
        temporary.remove(work)


def _remove_old_builds(directory):
    """Removes the builds beside ``directory`` that were not used for longest, and at which nobody is at work."""
    builds = [entry for entry in os.scandir(os.path.dirname(directory)) if re.fullmatch("[0-9a-f]{16}", entry.name)]
    for entry in sorted(builds, key=lambda entry: -entry.stat(follow_symlinks=False).st_mtime)[MOST_BUILDS:]:
        if entry.path != directory and not _is_locked(os.path.join(entry.path, LOCK)):
            temporary.remove(entry.path)


def _is_locked(path: str) -> bool:
    """Whether a process holds the lock file ``path``: it builds."""
    with _process_lock(path, seconds=0) as held:
        return not held


@contextlib.contextmanager
def _process_lock(path, seconds=BUILD_SECONDS):
    """Holds ``path`` against other processes; the system gives it back when its holder ends, however that ends.

    A holder that takes longer than a build may is not waited for, and neither is one where the system or the file
    system has no such locks: two builds at once cost time and nothing else.

    Yields:
        bool: whether it is held.
    """
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
        temporary.remove(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    held = False
    try:
        try:
            import fcntl

            end = time.monotonic() + seconds
            while not held:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held = True
                except BlockingIOError:
                    if time.monotonic() >= end:
                        break
                    time.sleep(0.1)
        except (ImportError, OSError) as error:
            logger.debug("no lock: %s", error)
        yield held
    finally:
        os.close(descriptor)


def _compile(target):
    compiler, cores = find_compiler(), usable_cores()
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


def find_compiler() -> list[str]:
    """The command of ``$CXX``, or of the first compiler on the path.

    Raises:
        Unavailable: there is none.
    """
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
    identity = [
        *FLAGS,
        *_target_flags(),
        os.environ.get("CXX", ""),
        platform.system(),
        platform.machine(),
        _cpu_flags(),
    ]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES + HEADERS) + "\n".join(identity).encode())
    return os.path.join(cache_directory(), key.hexdigest()[:16])


def _cpu_flags():
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


def _sha256(content):
    return hashlib.sha256(content).hexdigest().encode()


def _digest_of(path):
    return os.path.splitext(path)[0] + ".sha256"


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
