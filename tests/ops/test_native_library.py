"""Building and loading the kernels: what is broken is rebuilt, what cannot be built is done without."""

import os
import platform
import stat
import subprocess
import sys

import paddle
import pytest

from ppsd3.ops import native
from ppsd3.ops.native import library

needs_kernels = pytest.mark.skipif(not native.status()[0], reason="no native kernels here")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def compilations(tmp_path, monkeypatch):
    """Number of compilations so far, of a source that compiles in no time."""
    source, log, script = tmp_path / "tiny.cpp", tmp_path / "calls", tmp_path / "counting-cxx"
    source.write_text('extern "C" void ppsd3_set_runtime(void*, void*) {}')
    script.write_text(f'#!/bin/sh\necho call >> {log}\nexec {library._compiler()[0]} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(library, "SOURCES", [source])
    monkeypatch.setenv("CXX", str(script))
    return lambda: len(log.read_text().splitlines()) if log.exists() else 0


@needs_kernels
def test_built_once(cache, compilations):
    first, path = library.load()
    second, same_path = library.load()
    assert first is not None and second is not None and path == same_path
    assert path.startswith(str(cache)) and compilations() == 1
    assert sorted(os.listdir(os.path.dirname(path))) == ["libppsd3_kernels.sha256", "libppsd3_kernels.so"]


@needs_kernels
@pytest.mark.parametrize("damage", ["truncated", "garbage", "deleted", "checksum deleted"])
def test_damage_is_rebuilt(cache, compilations, damage):
    _, path = library.load()
    if damage == "deleted":
        os.remove(path)
    elif damage == "checksum deleted":
        os.remove(path[: -len("so")] + "sha256")
    else:
        with open(path, "rb") as file:
            content = file.read()
        replacement = path + ".damaged"  # a new file: the old one is mapped into this process
        with open(replacement, "wb") as file:
            file.write(content[: len(content) // 3] if damage == "truncated" else b"not a library")
        os.replace(replacement, path)
    loaded, _ = library.load()
    assert loaded is not None and compilations() == 2


@needs_kernels
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, compilations):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    loaded, path = library.load()
    assert loaded is not None and not path.startswith(str(tmp_path / "file"))


def test_no_compiler(cache, monkeypatch):
    monkeypatch.setenv("PATH", str(cache))
    monkeypatch.delenv("CXX", raising=False)
    loaded, reason = library.load()
    assert loaded is None and "no C++ compiler" in reason


def test_a_compiler_that_fails(cache, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    loaded, reason = library.load()
    assert loaded is None and "false" in reason


def test_without_a_compiler_the_operations_still_work(cache):
    code = (
        "import os, paddle; from ppsd3 import ops; from ppsd3.ops import native; assert not native.status()[0];"
        "x = paddle.ones([2, 3, 4]); ops.gated_residual(x, x[:, 0], ops.gelu(ops.layer_norm(x)));"
        "assert ops.joint_attention([x.unsqueeze(2)] * 3, [x.unsqueeze(2)] * 3)[0].shape == [2, 3, 1, 4]"
    )
    environment = dict(os.environ, XDG_CACHE_HOME=str(cache), CXX="false", PYTHONPATH=os.pathsep.join(sys.path))
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@needs_kernels
def test_use_native_as_a_statement_and_as_a_context():
    native.use_native(False)
    try:
        assert not native.usable(paddle.ones([1]))
        with native.use_native(True):
            assert native.usable(paddle.ones([1]))
        assert not native.usable(paddle.ones([1]))
    finally:
        native.use_native(True)


@needs_kernels
@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86")
@pytest.mark.parametrize("flags", ["-march=x86-64-v3", "-march=x86-64"], ids=["AVX2", "portable"])
def test_kernels_for_other_cpus_compute_the_same(cache, flags):
    """The tests against the references, with a library for CPUs that have less than this one may have."""
    folder = os.path.dirname(os.path.abspath(__file__))
    files = [os.path.join(folder, name) for name in ("test_native.py", "test_vision_native.py", "test_quantized.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PPSD3_TARGET_FLAGS": flags}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
    assert [*cache.rglob("libppsd3_kernels.so")], (
        "no library was built, so the references were compared with themselves"
    )
