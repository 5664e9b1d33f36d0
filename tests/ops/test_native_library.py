"""Building and loading the kernels: what is broken is rebuilt, what cannot be built is done without."""

import os
import pathlib
import platform
import stat
import subprocess
import sys
import time

import pytest

from ppsd3.ops import native
from ppsd3.ops.native import library

needs_kernels = pytest.mark.skipif(not native.status()[0], reason="no native kernels here")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


COMPILER = """#!/bin/sh
case " $* " in *" -shared "*) echo linked >> {folder}/calls;; esac
while [ -e {folder}/slow ]; do rm {folder}/slow; sleep 0.5; done
while [ -e {folder}/stuck ]; do sleep 0.1; done
exec {compiler} "$@"
"""


@pytest.fixture
def compilations(tmp_path, monkeypatch):
    """Number of builds so far, of one small source; one takes half a second if there is a file ``slow``, and
    until a file ``stuck`` is gone."""
    source, log, script = tmp_path / "tiny.cpp", tmp_path / "calls", tmp_path / "counting-cxx"
    source.write_text('extern "C" int ppsd3_set_runtime(void*, void*) { return 0; }')
    script.write_text(COMPILER.format(folder=tmp_path, compiler=library.find_compiler()[0]))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(library, "SOURCES", [source])
    monkeypatch.setenv("CXX", str(script))
    return lambda: len(log.read_text().splitlines()) if log.exists() else 0


LOAD = """
import pathlib, sys, threading
from ppsd3.ops.native import library, load
library.SOURCES = [pathlib.Path(sys.argv[1]) / "tiny.cpp"]
print("ready", flush=True)
sys.stdin.readline()
found = []
threads = [threading.Thread(target=lambda: found.append(load())) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == 4 and all(loaded for loaded, _ in found), found
"""


def loader(tmp_path):
    """A process whose four threads load the library when they get a line."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(tmp_path)]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **streams)
    assert process.stdout.readline() == "ready\n"
    return process


@needs_kernels
def test_built_once(cache, compilations):
    first, path = library.load()
    second, same_path = library.load()
    assert first is not None and second is not None and path == same_path
    assert path.startswith(str(cache)) and compilations() == 1
    assert sorted(os.listdir(os.path.dirname(path))) == ["libppsd3_kernels.sha256", "libppsd3_kernels.so", "lock"]


@needs_kernels
def test_threads_and_processes_that_start_together_build_once(cache, compilations):
    (cache / "slow").touch()
    processes = [loader(cache) for _ in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], said
    assert compilations() == 1
    assert said.count("Compiling CPU kernels, once") == said.count("\n") == 1


@needs_kernels
def test_a_build_that_is_killed_blocks_nobody_and_leaves_nothing(cache, compilations):
    (cache / "stuck").touch()
    process = loader(cache)
    process.stdin.write("go\n")
    process.stdin.flush()
    while not (unfinished := [*cache.rglob("build-*")]):
        time.sleep(0.01)
    assert process.poll() is None and not [*cache.rglob("libppsd3_kernels.*")]
    process.kill()  # without its compiler, which goes on
    process.wait()
    (cache / "stuck").unlink()
    loaded, path = library.load()
    assert loaded is not None and os.path.dirname(path) == str(unfinished[0].parent)
    assert sorted(os.listdir(os.path.dirname(path))) == ["libppsd3_kernels.sha256", "libppsd3_kernels.so", "lock"]


@needs_kernels
@pytest.mark.parametrize("damage", ["truncated", "garbage", "deleted", "checksum deleted"])
def test_damage_is_rebuilt(cache, compilations, damage):
    _, path = library.load()
    if damage == "deleted":
        os.remove(path)
    elif damage == "checksum deleted":
        os.remove(path[: -len("so")] + "sha256")
    else:
        content = pathlib.Path(path).read_bytes()
        replacement = path + ".damaged"  # a new file: the old one is mapped into this process
        with open(replacement, "wb") as file:
            file.write(content[: len(content) // 3] if damage == "truncated" else b"not a library")
        os.replace(replacement, path)
    loaded, _ = library.load()
    assert loaded is not None and compilations() == 2


def put(path, kind, elsewhere):
    """Something of this kind in the place of a file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(elsewhere)
    else:
        path.write_bytes(b"\xff\x00")


@needs_kernels
@pytest.mark.parametrize("kind", ["pipe", "directory", "link", "bytes"])
def test_whatever_lies_in_the_place_of_a_file_is_rebuilt(cache, compilations, kind):
    folder, elsewhere = pathlib.Path(library._directory()), cache / "elsewhere"
    elsewhere.write_bytes(b"not ours")
    if kind == "pipe":  # where a directory belongs
        os.mkfifo(folder)
        library.private_directory(str(folder))
    folder.mkdir(exist_ok=True)
    for name in ("libppsd3_kernels.so", "libppsd3_kernels.sha256", "lock"):
        put(folder / name, kind, elsewhere)
    loaded, detail = library.load()
    assert loaded is not None and detail == str(folder / library.NAME) and compilations() == 1
    assert library.load()[1] == detail and compilations() == 1 and elsewhere.read_bytes() == b"not ours"


@needs_kernels
def test_what_others_may_have_written_is_not_loaded(cache, compilations, monkeypatch):
    _, path = library.load()
    os.chmod(path, 0o602)
    assert library.load()[1] == path and compilations() == 2
    os.chmod(os.path.dirname(path), 0o720)
    _, detail = library.load()
    assert "for this process only" in detail and "others may write to" in detail and compilations() == 3


@needs_kernels
def test_old_builds_go(cache, compilations, monkeypatch):
    monkeypatch.setattr(library, "MOST_BUILDS", 2)
    for number in range(4):
        (cache / "ppsd3" / f"{number:016x}").mkdir(parents=True)
        os.utime(cache / "ppsd3" / f"{number:016x}", (number, number))
    (cache / "ppsd3" / "huggingface").mkdir()
    _, path = library.load()
    own = pathlib.Path(path).parent.name
    assert sorted(os.listdir(cache / "ppsd3")) == sorted([own, f"{3:016x}", "huggingface"])


@needs_kernels
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, compilations):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    loaded, detail = library.load()
    assert loaded is not None and "for this process only" in detail and "Not a directory" in detail


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
@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86")
@pytest.mark.machine
@pytest.mark.parametrize("flags", ["-march=x86-64-v3", "-march=x86-64"], ids=["AVX2", "portable"])
def test_kernels_for_other_cpus_compute_the_same(cache, flags):
    """The tests against the references, with a library for CPUs that have less than this one may have."""
    folder = os.path.dirname(os.path.abspath(__file__))
    files = [os.path.join(folder, name) for name in ("test_native.py", "test_convolution.py", "test_quantized.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PPSD3_TARGET_FLAGS": flags}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
    assert [*cache.rglob("libppsd3_kernels.so")], (
        "no library was built, so the references were compared with themselves"
    )


# Memory for the keys of one head is asked for by the threads that share the work: none of it can be had.
TOO_MUCH = """
import resource
import numpy, paddle
from ppsd3.ops import features, native
from ppsd3.ops.native.prototypes import structure
from ppsd3.utils.errors import KernelMemoryError
assert native.status()[0]
paddle.ones([64, 64]) @ paddle.ones([64, 64])  # what starts threads has started them
memory = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (memory + (64 << 20),) * 2)

def tokens(numbers, rows, stride):
    return structure("Tokens")((numbers.ctypes.data, 0), (rows, 0), (stride, 0))

def attention(kernel, keys):
    numbers, out = numpy.ones(128, "float32"), numpy.zeros((64, 2, 64), "float32")
    queries, same = tokens(numbers, 64, 0), tokens(numbers, keys, 0)  # each token is in the same place
    kernel(structure("Shape")(1, 2, 64, 64, keys), queries, same, same, tokens(out, 64, 128), None, 1.0, None, 0, 0)
    return out

for kernel in [native.lib().ppsd3_attention] + [native.lib().ppsd3_amx_attention] * features.has("amx"):
    assert numpy.allclose(attention(kernel, 70), 1)
    for _ in range(2):
        try:
            attention(kernel, 1 << 28)
            raise SystemExit("There was memory.")
        except KernelMemoryError:
            pass
    assert numpy.allclose(attention(kernel, 70), 1)
"""


@needs_kernels
@pytest.mark.skipif(platform.system() != "Linux", reason="limits memory as Linux does")
def test_without_memory_a_kernel_says_so_and_works_again_later():
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    subprocess.run([sys.executable, "-W", "ignore", "-c", TOO_MUCH], check=True, env=environment, timeout=120)
