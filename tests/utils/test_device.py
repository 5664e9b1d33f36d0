"""Devices by their names; threads and instruction sets: the user's choice stays, otherwise every core works and results
stay accurate."""

import os
import platform
import subprocess
import sys

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3.cli import options
from ppsd3.utils import device
from ppsd3.utils.errors import InputError
from ppsd3.utils.random import randn_tensor

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
AMD = "vendor_id\t: AuthenticAMD\nmodel name\t: x\nflags\t\t: {}\nbugs\t\t: y\n"


CHOICES = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", device.TUNE_VARIABLE)


def printed(code, **environment):
    """The number that ``code`` prints last, in a new process whose environment has no choice but ``environment``."""
    clean = {key: value for key, value in os.environ.items() if key not in CHOICES}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import os, sys; sys.path.insert(0, {ROOT!r})\n{code}"],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout.split()[-1])


# Paddle's threads, as its OpenMP runtime knows them, before and after a model is built.
THREADS = """
import ctypes, glob
import ppsd3
libraries = os.path.join(os.path.dirname(sys.modules["paddle"].__file__), "libs")
runtime = ctypes.CDLL((glob.glob(libraries + "/libiomp5*") + glob.glob(libraries + "/libgomp*"))[0])
print(runtime.omp_get_max_threads())
"""
MODEL = "ppsd3.AutoencoderTiny(encoder_block_out_channels=[8] * 4, decoder_block_out_channels=[8] * 4)\n"
BUILT = THREADS + MODEL + THREADS


def test_all_cores_for_models_unless_the_user_chose():
    cores = device.usable_cores()
    assert printed(BUILT) == printed("import paddle\n" + BUILT) == cores
    assert printed(BUILT, OMP_NUM_THREADS="1") == 1
    assert printed("import paddle\n" + BUILT, OMP_NUM_THREADS="3") == 3
    for choice in "13":
        assert printed(f"os.environ['OMP_NUM_THREADS'] = '{choice}'\n" + BUILT) == int(choice)
    assert printed(BUILT, PPSD3_TUNE_PROCESS="0") == 1


def test_a_new_thread_computes_with_as_many():
    """OpenMP gives one to each thread but the first; a network that it calls sees to it."""
    code = (
        BUILT
        + """
import threading
net = ppsd3.AutoencoderTiny(encoder_block_out_channels=[8] * 4, decoder_block_out_channels=[8] * 4)
picture = sys.modules["paddle"].ones([1, 3, 8, 8])
thread = threading.Thread(target=lambda: (net(picture), print(runtime.omp_get_max_threads())))
thread.start()
thread.join()
"""
    )
    assert printed("import paddle\n" + code, OMP_NUM_THREADS="3") == 3


def test_the_import_changes_nothing_of_the_process():
    """Beyond what Paddle's own import does: the environment, threads, and what malloc keeps."""
    assert (
        printed("import paddle; before = dict(os.environ); from ppsd3 import *; print(int(before == os.environ))") == 1
    )
    assert printed(THREADS) == 1


def test_quota_of_a_container(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for text, cores in (("max 100000", 64), ("150000 100000", 2), ("50000 100000", 1), ("", 64)):
        monkeypatch.setattr(device, "_read", lambda path, size=-1, text=text: text)
        assert device.usable_cores() == cores


@pytest.mark.parametrize(
    "cpu, expected",
    [
        (AMD.format("sse avx2 fma"), "5"),
        (AMD.format("avx2 avx512f avx512dq avx512bw avx512vl avx512cd"), "7"),
        (AMD.format("avx2 avx512f"), "5"),
        (AMD.format("sse4_2"), None),
        (AMD.format("avx2").replace("AuthenticAMD", "GenuineIntel"), None),
        ("", None),
    ],
)
def test_mkl_path(monkeypatch, cpu, expected):
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    monkeypatch.setattr(device, "_read", lambda path, size=-1: cpu)
    told = device._choose_mkl_path()
    assert os.environ.pop("MKL_DEBUG_CPU_TYPE", None) == expected
    assert told == (expected and f"MKL_DEBUG_CPU_TYPE={expected}")


def test_users_mkl_path_stays(monkeypatch):
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "4")
    device._choose_mkl_path()
    assert os.environ["MKL_DEBUG_CPU_TYPE"] == "4"


# Faults of one page each while an array of 40 MB is made, filled and freed ten times.
FAULTS = """
import numpy, resource
numpy.ones(10_000_000, "float32")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): numpy.ones(10_000_000, "float32")
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
# numpy asks for pages of 2 MB where the system has them, which would hide the faults
SMALL_PAGES = {"NUMPY_MADVISE_HUGEPAGE": "0"}


@pytest.mark.machine
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
def test_freed_memory_is_kept_unless_the_user_chose():
    tuned = "import ppsd3; ppsd3.tune_process()" + FAULTS
    assert printed(tuned, **SMALL_PAGES) < 5000
    assert printed(tuned, **SMALL_PAGES, MALLOC_MMAP_THRESHOLD_="1000000") > 50000
    assert printed(tuned, **SMALL_PAGES, PPSD3_TUNE_PROCESS="0") > 50000
    assert printed("import ppsd3" + FAULTS, **SMALL_PAGES) > 50000


def test_what_was_done_is_told_and_done_once(monkeypatch):
    steps = []
    for name in ("_use_all_cores", "_choose_mkl_path", "_keep_freed_memory"):
        monkeypatch.setattr(device, name, lambda name=name: steps.append(name) or (name if "mkl" not in name else None))
    monkeypatch.setattr(device, "_tuned", None)
    assert device.tune_process() == device.tune_process() == ("_use_all_cores", "_keep_freed_memory")
    assert steps == ["_use_all_cores", "_choose_mkl_path", "_keep_freed_memory"]
    monkeypatch.setattr(device, "_tuned", None)
    monkeypatch.setenv(device.TUNE_VARIABLE, "0")
    assert device.tune_process() == ("left as it is (PPSD3_TUNE_PROCESS=0)",) and len(steps) == 3


@pytest.mark.parametrize("m, k, n", [(1, 1, 1), (5, 7, 3), (77, 768, 320), (129, 257, 513), (33, 4096, 64)])
def test_products_are_as_accurate_as_fp32_allows(m, k, n):
    device._choose_mkl_path()
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((n, k)).astype(np.float32)
    product = paddle.matmul(paddle.to_tensor(a), paddle.to_tensor(b), transpose_y=True).numpy()
    scale = np.abs(a.astype(np.float64)) @ np.abs(b.T.astype(np.float64))
    error = np.abs(product - a.astype(np.float64) @ b.T.astype(np.float64)) / scale
    assert error.max() < 4e-7


@pytest.fixture
def two_gpus(monkeypatch):
    """Paddle says that it has two GPUs, and computes on the second."""
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:1")


@pytest.mark.parametrize(
    "given, name",
    [
        ("cuda", "gpu"),
        ("cuda:1", "gpu:1"),
        ("gpu:0", "gpu:0"),
        (1, "gpu:1"),
        ("Place(gpu:1)", "gpu:1"),
        ("cpu", "cpu"),
        ("cpu:0", "cpu"),
        (paddle.CPUPlace(), "cpu"),
    ],
)
def test_names_of_devices(two_gpus, given, name):
    assert device.device_name(given) == device.usable_device(given) == name


def test_devices_that_are_not_here(two_gpus):
    for given in ("float16", "fast", None, True, 1.0):
        assert device.device_name(given) is None
        with pytest.raises(InputError, match="is no device"):
            device.usable_device(given)
    with pytest.raises(InputError, match="'cuda:2' is not here: this Paddle sees 2 GPUs"):
        device.usable_device("cuda:2")
    with pytest.raises(InputError, match="'npu:0' is not here: this Paddle is built without npu"):
        device.usable_device("npu:0")


def test_the_present_device(two_gpus):
    assert all(map(device.is_present_device, ("cuda", "gpu", "cuda:1", 1)))
    assert not any(map(device.is_present_device, ("cuda:0", "cpu", 0, "balanced", None)))


def test_the_device_of_offloaded_networks(two_gpus, monkeypatch):
    for given, name in (((None,), "gpu:1"), (("cuda",), "gpu:0"), (("gpu:1",), "gpu:1"), ((None, 1), "gpu:1")):
        assert device.execution_device(*given) == name
    assert device.execution_device(None, "cuda:1") == "gpu:1"
    for given, message in (
        (("cpu",), "where networks are already"),
        (("gpu", 1), "one of the two"),
        ((None, 7), "gpu:7"),
    ):
        with pytest.raises(InputError, match=message):
            device.execution_device(*given)
    monkeypatch.setattr(paddle, "get_device", lambda: "cpu")
    assert device.execution_device(None) == "gpu:0"
    monkeypatch.setattr(paddle.device, "get_all_custom_device_type", lambda: ["npu"])
    monkeypatch.setattr(paddle.device, "get_available_custom_device", lambda: ["npu:0", "npu:1"])
    monkeypatch.setattr(paddle, "get_device", lambda: "npu:1")
    assert device.execution_device(None) == "npu:1" and device.execution_device("npu") == "npu:0"
    with pytest.raises(InputError, match="'npu:2' is not here: this Paddle sees npu:0, npu:1"):
        device.execution_device("npu:2")


def test_a_build_for_gpus_without_one(monkeypatch):
    """Paddle ends the process where a GPU is named that it does not see."""
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 0)
    for owner, name in ((paddle, "set_device"), (paddle.device, "set_device"), (paddle, "CUDAPlace")):
        monkeypatch.setattr(owner, name, lambda *_: os._exit(3))
    pipe = tiny.make_pipeline()
    for ask in (
        lambda: pipe.to("gpu"),
        lambda: pipe.to("cuda:0"),
        lambda: pipe.transformer.to("gpu"),
        pipe.enable_model_cpu_offload,
        lambda: pipe.enable_sequential_cpu_offload(0),
        lambda: randn_tensor([2], device="gpu"),
        lambda: options._choose_device("gpu", "float32"),
    ):
        with pytest.raises(InputError, match="this Paddle sees 0 GPUs"):
            ask()
    assert paddle.get_device() == "cpu" and pipe.device.is_cpu_place()
