"""A device for tests that stands in for a GPU on a CPU: a plug-in of Paddle, ``plugin.cpp`` here.

Its memory cannot be read by the host, so a kernel of ours that is handed a tensor from there ends the process; each
operation of Paddle copies what it needs and computes on the CPU. Bytes and copies are counted. What it cannot tell:
whether a GPU has a kernel (``tests/device/test_operators.py`` does), how fast it is, and how it rounds.

``pytest -m device`` runs what :mod:`.selection` chooses on the device, and the tests in ``tests/device/``::

    pytest -m device tests/pipelines/test_residency.py   # this file on the device
    pytest -m device -n 2    # all, in two processes: a stray pointer ends one of them, and fails its test by name

In such a test::

    from helpers import device
    device.reset_peak(); ...; assert device.peak_bytes() < ...

A test that needs a process of its own hands code to ``device.run``. Paddle 3 or newer; the variables that Paddle reads
as it is imported are set by :func:`load`, so nothing here imports Paddle or ppsd3 before.
"""

import contextlib
import ctypes
import faulthandler
import functools
import hashlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings

NAME = "test_device"
SOURCE = pathlib.Path(__file__).with_name("plugin.cpp")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared")


class Counters(ctypes.Structure):
    """What the plug-in counts, in the order in which it declares them."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("bytes", "peak_bytes", "copies_to_device", "copies_to_host", "copies_within", "reads")
    ]


def is_selected(expression):
    """Whether the expression of pytest's ``-m`` asks for tests on the device."""
    return "device" in (expression or "") and "not device" not in expression


def load():
    """Imports Paddle with the device, and makes it the one that Paddle computes on."""
    assert "paddle" not in sys.modules, "Paddle loads its plug-ins as it is imported: too late for the test device"
    os.environ.update(environment())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No ccache found")
        import paddle

    faulthandler.enable()  # in the place of Paddle's own handler, which says nothing of Python's lines
    paddle.set_device(NAME)


def environment():
    """Variables with which a process has the device. Freed memory goes back to it at once, and is not counted."""
    settings = {"FLAGS_use_stride_kernel": "0", "FLAGS_free_idle_chunk": "1", "GLOG_minloglevel": "1"}
    return {"CUSTOM_DEVICE_ROOT": str(library().parent), **settings}


def run(code, *arguments):
    """What ``code`` prints in a process of its own, whose Paddle computes on the device."""
    from ..process import run

    return run(f"from helpers import device; device.load(); import paddle\n{code}", *arguments)


_before = 0  # bytes that are not counted


def count_from_here():
    """What is on the device now, as other tests' fixtures are, is left out of the bytes counted from now on."""
    global _before
    _before = _counters().bytes


def device_bytes():
    """Bytes of the tensors that are on the device now, beside those that were at :func:`count_from_here`."""
    return _counters().bytes - _before


def peak_bytes():
    """The most that :func:`device_bytes` has been since :func:`reset_peak`."""
    return _counters().peak_bytes - _before


def reset_peak():
    _counters().peak_bytes = _counters().bytes


def copies():
    """``(to the device, to the host, within the device)``: copies so far, those of operations included."""
    counters = _counters()
    return counters.copies_to_device, counters.copies_to_host, counters.copies_within


def host_reads():
    """Copies to the host so far that no operation needed: ``tensor.numpy()``, ``float(tensor)``, ``tensor.cpu()``, a
    tensor where Paddle wants a number. On a GPU each of them waits until all work before it is done."""
    return _counters().reads


@contextlib.contextmanager
def watched_reads():
    """A list to which each of :func:`host_reads` adds its place: the innermost line of the package, ``"file:line"``."""
    places = []
    kind = ctypes.CFUNCTYPE(None)
    callback = kind(lambda: places.append(_place_in_the_package()))
    pointer = ctypes.c_void_p.in_dll(_plugin(), "test_device_on_read")
    pointer.value = ctypes.cast(callback, ctypes.c_void_p).value
    try:
        yield places
    finally:
        pointer.value = None


def _place_in_the_package():
    frames = [frame for frame, _ in traceback.walk_stack(None) if f"{os.sep}ppsd3{os.sep}" in frame.f_code.co_filename]
    if not frames:
        return "outside of the package"
    return f"{frames[0].f_code.co_filename.rpartition(f'{os.sep}ppsd3{os.sep}')[2]}:{frames[0].f_lineno}"


@functools.cache
def _plugin():
    return ctypes.CDLL(str(library()))


def _counters():
    return Counters.in_dll(_plugin(), "test_device_counters")


@functools.cache
def library():
    """The compiled plug-in, made once per machine, source and Paddle."""
    paddle = pathlib.Path(importlib.util.find_spec("paddle").submodule_search_locations[0])
    version = (paddle / "version" / "__init__.py").read_bytes()
    key = hashlib.sha256(b"\n".join([SOURCE.read_bytes(), version, str((paddle, FLAGS)).encode()])).hexdigest()[:16]
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    target = cache / "ppsd3" / f"test-device-{key}" / "libtest_device.so"
    if not target.exists():
        _compile(target, paddle / "include")
    return target


def _compile(target, headers):
    compiler = os.environ.get("CXX", "").split() or [next(filter(shutil.which, ("g++", "c++", "clang++")), "g++")]
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as directory:  # two processes may compile at once
        built = pathlib.Path(directory) / target.name
        subprocess.run([*compiler, *FLAGS, f"-I{headers}", str(SOURCE), "-o", str(built), "-ldl"], check=True)
        built.replace(target)
