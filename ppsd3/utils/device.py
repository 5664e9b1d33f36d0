"""CPU threads and instruction sets: what has to be told to Paddle so that it uses the machine."""

import contextlib
import ctypes
import functools
import os
import sys
import warnings

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
# MKL's own numbers for its code paths.
_MKL_AVX2, _MKL_AVX512 = "5", "7"
_AMD = "AuthenticAMD"
_AVX512_FLAGS = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}


def use_all_cores():
    """Gives Paddle every core that this process may use and memory that stays, and MKL the path that the CPU deserves.

    Paddle sets ``OMP_NUM_THREADS=1`` when it is imported; a value that the user chose stays. Called once by
    ``import ppsd3``; takes about a millisecond beyond ``import paddle``.

    Returns:
        int: the number of threads Paddle has now.
    """
    chosen = _threads_chosen_by_user()
    choose_mkl_path()
    keep_freed_memory()
    with warnings.catch_warnings():  # what Paddle says on every start is of use to those alone who compile operators
        warnings.filterwarnings("ignore", message="No ccache found")
        from .paddle_internals import set_num_threads

    threads = chosen or usable_cores()
    set_num_threads(threads)
    return threads


def usable_cores():
    """Number of cores that this process may run on: CPU affinity, then a container's CPU quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (_read("/sys/fs/cgroup/cpu.max").split() + ["max", "max"])[:2]
    return max(1, min(cores, -(-int(quota) // int(period)))) if quota.isdigit() and period.isdigit() else cores


def keep_freed_memory():
    """Lets glibc keep up to 1 GB of what is freed: every result in memory fresh from the system costs a page fault for
    each 4 KB, 5 to 20 % of a matrix product. ``MALLOC_MMAP_THRESHOLD_`` and ``MALLOC_TRIM_THRESHOLD_``, if the user set
    either, stay as they are, and other C libraries are left alone.
    """
    if not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}.isdisjoint(os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        mallopt(parameter, 1 << 30)


def release_freed_memory():
    """Gives back to the system what glibc keeps of freed memory, in the middle of its heaps too."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def choose_mkl_path():
    """Sets ``MKL_DEBUG_CPU_TYPE`` on AMD CPUs, unless the user did: acts only before the first matrix product.

    The MKL in Paddle's wheels takes a slow path on any CPU that is not Intel's. Measured on an AVX-512 EPYC, fp32
    GEMM: 75 GFLOP/s by default, 185 with the AVX2 path, 190 with the AVX-512 one, the error against float64 the same.
    """
    if "MKL_DEBUG_CPU_TYPE" in os.environ:
        return
    cpu = _read("/proc/cpuinfo", 16384)
    if _AMD not in cpu:
        return
    flags = set(cpu.partition("\nflags")[2].partition("\n")[0].split())
    if "avx2" in flags:
        os.environ["MKL_DEBUG_CPU_TYPE"] = _MKL_AVX512 if flags >= _AVX512_FLAGS else _MKL_AVX2


def is_amd():
    """Whether the CPU is AMD's, as far as Linux says it."""
    return _AMD in _read("/proc/cpuinfo", 16384)


@functools.cache  # Paddle's import changes what can be known: the first answer counts
def _threads_chosen_by_user():
    """The user's ``OMP_NUM_THREADS`` as an int, or None if there is none.

    Once Paddle is imported the variable is always set, mostly by Paddle to 1. Then a 1 is the user's only if the
    process was started with it; any other number cannot be Paddle's.
    """
    value = os.environ.get("OMP_NUM_THREADS", "")
    if not value.isdigit() or int(value) < 1:
        return None
    if "paddle" in sys.modules and value == "1" and "\0OMP_NUM_THREADS=" not in "\0" + _read("/proc/self/environ"):
        return None
    return int(value)


def _read(path, size=-1):
    """The start of a text file, "" if it cannot be read (another system than Linux)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(size)
    except OSError:
        return ""
