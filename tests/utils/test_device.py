"""Threads and instruction sets: the user's choice stays, otherwise every core works and results stay accurate."""

import os
import platform
import subprocess
import sys

import numpy as np
import paddle
import pytest

from ppsd3.utils import device

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
AMD = "vendor_id\t: AuthenticAMD\nmodel name\t: x\nflags\t\t: {}\nbugs\t\t: y\n"


def threads(code, **environment):
    """What ``code`` prints in a new process whose environment has no choice but ``environment``."""
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")}
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


SHOW = "from ppsd3.utils.device import use_all_cores; print(use_all_cores())"


def test_all_cores_unless_the_user_chose():
    cores = device.usable_cores()
    assert threads("import paddle; " + SHOW) == cores
    assert threads("import paddle; " + SHOW, OMP_NUM_THREADS="1") == 1
    assert threads("import paddle; " + SHOW, OMP_NUM_THREADS="3") == 3
    assert threads("os.environ['OMP_NUM_THREADS'] = '3'; import paddle; " + SHOW) == 3


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
    device.choose_mkl_path()
    assert os.environ.pop("MKL_DEBUG_CPU_TYPE", None) == expected


def test_users_mkl_path_stays(monkeypatch):
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "4")
    device.choose_mkl_path()
    assert os.environ["MKL_DEBUG_CPU_TYPE"] == "4"


# Faults of one page each while an array of 40 MB is made, filled and freed ten times.
FAULTS = """
import ppsd3, numpy, resource
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
    assert threads(FAULTS, **SMALL_PAGES) < 5000
    assert threads(FAULTS, **SMALL_PAGES, MALLOC_MMAP_THRESHOLD_="1000000") > 50000


@pytest.mark.parametrize("m, k, n", [(1, 1, 1), (5, 7, 3), (77, 768, 320), (129, 257, 513), (33, 4096, 64)])
def test_products_are_as_accurate_as_fp32_allows(m, k, n):
    device.choose_mkl_path()
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((n, k)).astype(np.float32)
    product = paddle.matmul(paddle.to_tensor(a), paddle.to_tensor(b), transpose_y=True).numpy()
    scale = np.abs(a.astype(np.float64)) @ np.abs(b.T.astype(np.float64))
    error = np.abs(product - a.astype(np.float64) @ b.T.astype(np.float64)) / scale
    assert error.max() < 4e-7
