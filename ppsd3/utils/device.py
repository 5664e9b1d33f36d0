"""Devices by their names; CPU threads, memory and instruction sets: what Paddle is told so that it uses the machine."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import sys
import threading
import warnings
from typing import Any

from .errors import InputError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
# MKL's own numbers for its code paths.
_MKL_AVX2, _MKL_AVX512 = "5", "7"
_AMD = "AuthenticAMD"
_AVX512_FLAGS = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}
_KEPT = 1 << 30  # bytes

_RANKS_HERE = "PADDLE_LOCAL_SIZE"  # processes that paddle.distributed.launch started on this machine
TUNE_VARIABLE = "PPSD3_TUNE_PROCESS"
_tuned = None  # what tune_process has done
_threads = None  # how many compute on the CPU, once tune_process has chosen
_tuning = threading.Lock()
_known = threading.local()  # whether tune_thread has met the present thread


def import_paddle():
    """Imports Paddle, without its advice on compiling operators and without losing what ``OMP_NUM_THREADS`` was."""
    _threads_chosen_by_user()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No ccache found")
        import paddle  # noqa: F401


def tune_process() -> tuple[str, ...]:
    """Sets this process up for work on the CPU, once; called when the first model is built and when ``ppsd3`` starts.

    Paddle gets every core that the process may use, and keeps freed memory; on AMD CPUs MKL takes its fast path. What
    the user chose stays: ``OMP_NUM_THREADS``, ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_``,
    ``MKL_DEBUG_CPU_TYPE``. ``PPSD3_TUNE_PROCESS=0`` turns it off; ``import ppsd3`` alone changes nothing.

    Returns:
        What was done, one clause each; ``ppsd3 info`` prints it.
    """
    global _tuned
    with _tuning:
        if _tuned is None:
            off = os.environ.get(TUNE_VARIABLE, "") == "0"
            steps = () if off else (_use_all_cores, _choose_mkl_path, _keep_freed_memory)
            done = tuple(filter(None, [step() for step in steps]))
            _tuned = (f"left as it is ({TUNE_VARIABLE}=0)",) if off else done
        return _tuned


def tune_thread() -> None:
    """What :func:`tune_process` does, for the present thread: called whenever one begins to work with a network.

    OpenMP counts its threads for each thread that calls it, and of Python's threads only the first knows more than one.
    And a thread that has met Paddle while another traced a graph is brought back to dynamic mode.
    """
    if not getattr(_known, "tuned", False):
        _tune_new_thread()


def share_cores(calls: int) -> None:
    """Gives the present thread, one of ``calls`` that draw at once, its part of the process's CPU threads."""
    from .paddle_internals import set_num_threads

    tune_thread()
    if _threads is not None:
        set_num_threads(max(1, _threads // calls))


def _tune_new_thread():
    from .paddle_internals import leave_static_mode_of_others, set_num_threads
    from .threads import process_wide

    tune_process()
    with process_wide:
        leave_static_mode_of_others()
    if _threads is not None:
        set_num_threads(_threads)
    _known.tuned = True


def _use_all_cores():
    """Paddle sets ``OMP_NUM_THREADS=1`` when it is imported; a number that the user chose stays."""
    global _threads
    from .paddle_internals import set_num_threads

    chosen = _threads_chosen_by_user()
    _threads = chosen or max(1, usable_cores() // int(os.environ.get(_RANKS_HERE) or 1))
    set_num_threads(_threads)
    return f"{_threads} CPU threads" + (" (OMP_NUM_THREADS)" if chosen else "")


def usable_cores():
    """Number of cores that this process may run on: CPU affinity, then a container's CPU quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (_read("/sys/fs/cgroup/cpu.max").split() + ["max", "max"])[:2]
    return max(1, min(cores, -(-int(quota) // int(period)))) if quota.isdigit() and period.isdigit() else cores


def _keep_freed_memory():
    """Lets glibc keep up to 1 GB of what is freed: every result in memory fresh from the system costs a page fault for
    each 4 KB, 5 to 20 % of a matrix product. ``MALLOC_MMAP_THRESHOLD_`` and ``MALLOC_TRIM_THRESHOLD_``, if the user set
    either, stay as they are, and other C libraries are left alone.
    """
    if not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}.isdisjoint(os.environ):
        return None
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return None
    for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        mallopt(parameter, _KEPT)
    return f"up to {_KEPT >> 30} GB of freed memory is kept (mallopt)"


def release_freed_memory():
    """Gives back to the system what glibc keeps of freed memory, in the middle of its heaps too."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _choose_mkl_path():
    """Sets ``MKL_DEBUG_CPU_TYPE`` on AMD CPUs, unless the user did: acts only before the first matrix product.

    The MKL in Paddle's wheels takes a slow path on any CPU that is not Intel's. Measured on an AVX-512 EPYC, fp32
    GEMM: 75 GFLOP/s by default, 185 with the AVX2 path, 190 with the AVX-512 one, the error against float64 the same.
    """
    cpu = _read("/proc/cpuinfo", 16384)
    flags = set(cpu.partition("\nflags")[2].partition("\n")[0].split())
    if "MKL_DEBUG_CPU_TYPE" in os.environ or _AMD not in cpu or "avx2" not in flags:
        return None
    path = os.environ["MKL_DEBUG_CPU_TYPE"] = _MKL_AVX512 if flags >= _AVX512_FLAGS else _MKL_AVX2
    return f"MKL_DEBUG_CPU_TYPE={path}"


@functools.cache  # Paddle's import changes what can be known: the first answer counts
def _threads_chosen_by_user():
    """The user's ``OMP_NUM_THREADS`` as an int, or None if there is none.

    Once Paddle is imported the variable is always set, mostly by Paddle to 1. Then a 1 is the user's only if the
    process was started with it; any other number cannot be Paddle's. Its launcher hands the 1 on.
    """
    value = os.environ.get("OMP_NUM_THREADS", "")
    if not value.isdigit() or int(value) < 1:
        return None
    if value == "1" and _RANKS_HERE in os.environ:
        return None
    if "paddle" in sys.modules and value == "1" and "\0OMP_NUM_THREADS=" not in "\0" + _read("/proc/self/environ"):
        return None
    return int(value)


_DEVICE_NAME = re.compile(r"(?:Place\()?(\w+)(?::(\d+))?\)?")  # as a name, or as a place prints itself


def device_name(device: Any) -> str | None:
    """Paddle's name of a device: ``"gpu:0"`` for ``"cuda:0"``, a torch device, ``paddle.CUDAPlace(0)`` or 0.

    None for what is none. A name without a number stays without.
    """
    if isinstance(device, int) and not isinstance(device, bool):
        return f"gpu:{device}"
    match = _DEVICE_NAME.fullmatch(str(device))
    if match is None or match[1] not in ("cpu", "gpu", "cuda", "xpu", "npu", *_custom_devices()):
        return None
    kind, index = match[1].replace("cuda", "gpu"), match[2]
    return kind if index is None or kind == "cpu" else f"{kind}:{index}"


def usable_device(device: Any, otherwise: str = "use 'cpu'") -> str:
    """Like :func:`device_name`, for a device that Paddle can compute on; ``otherwise`` is what errors advise.

    Raises:
        InputError: it is no device, none that Paddle has, or a card that Paddle has no code for.
    """
    import paddle

    from . import gpu

    name = device_name(device)
    if name is None:
        raise InputError(f"{device!r} is no device; use 'cpu', 'gpu' (or 'cuda') or e.g. 'gpu:1'.")
    kind, _, index = name.partition(":")
    if kind == "gpu":
        count = gpu.count()
        if not 0 <= int(index or 0) < count:
            have = f"sees {count} GPUs" if paddle.is_compiled_with_cuda() else "is built for the CPU"
            raise InputError(
                f"The device {str(device)!r} is not here: this Paddle {have}. Install paddlepaddle-gpu on a machine "
                f"with a GPU, or {otherwise}."
            )
        gpu.require_code(name)
        return name
    advice = otherwise[0].upper() + otherwise[1:]
    if kind != "cpu" and not (kind == "xpu" and paddle.is_compiled_with_xpu()) and kind not in _custom_devices():
        raise InputError(f"The device {str(device)!r} is not here: this Paddle is built without {kind}. {advice}.")
    if kind in _custom_devices() and int(index or 0):  # of a kind of which there is one, Paddle lists no number
        have = [one for one in paddle.device.get_available_custom_device() or () if one.partition(":")[0] == kind]
        if name not in have:
            raise InputError(f"The device {str(device)!r} is not here: this Paddle sees {', '.join(have)}. {advice}.")
    return name


def execution_device(device: Any, gpu_id: int | str | None = None) -> str:
    """The name of the device that offloaded networks compute on: ``device``, or the GPU ``gpu_id`` (a number or a
    name), or the one that Paddle computes on at present, or the first GPU.

    Raises:
        InputError: there is no such device, it is the CPU, or both are given.
    """
    import paddle

    if gpu_id is not None and device is not None:
        raise InputError(f"Both gpu_id={gpu_id!r} and device={device!r} are given. Pass one of the two.")
    asked = f"gpu:{gpu_id}" if isinstance(gpu_id, int) else device if gpu_id is None else gpu_id
    if asked is None:
        present = paddle.get_device()
        asked = "gpu" if present == "cpu" else present
    saving = (
        "load the pipeline with load_components='on_demand' and storage_dtype='float16', which saves memory on CPUs"
    )
    name = usable_device(asked, saving)
    if name == "cpu":
        raise InputError(f"device is {str(asked)!r}, where networks are already. Name a GPU, or {saving}.")
    return name if ":" in name else f"{name}:0"


def is_present_device(device: Any) -> bool:
    """Whether ``device`` names the one that Paddle computes on at present; ``"gpu"`` names every GPU."""
    import paddle

    present = paddle.get_device()
    return device_name(device) in (present, present.partition(":")[0])


def can_compute(network: Any) -> bool:
    """Whether Paddle computes in ``network``'s dtype where its weights are: on the CPU not in 16 bits."""
    dtype = str(getattr(network, "dtype", "")).rpartition(".")[-1]
    return dtype not in ("float16", "bfloat16") or not network.device.is_cpu_place()


def _custom_devices():
    """Kinds of devices that plugins of Paddle bring."""
    import paddle

    return paddle.device.get_all_custom_device_type() or []


def _read(path, size=-1):
    """The start of a text file, "" if it cannot be read (another system than Linux)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(size)
    except OSError:
        return ""


def peak_resident_set() -> int:
    """Peak resident memory of this process in bytes; on Linux since its program started, else since it was forked."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def available_memory() -> int:
    """Bytes of memory that are free for programs; elsewhere than on Linux, all that the machine has."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
