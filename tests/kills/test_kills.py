"""Whatever a save is stopped by, and whenever: the old is there or the new, it loads, and the next save cleans up.

A library before the C library (``faults.c``) kills the saving process at each of its calls that change files, or has
its writes fail as on a full or a broken disk. ``scenarios.py`` has what is saved over what.
"""

import errno
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

HERE = pathlib.Path(__file__).parent
SCENARIOS = (
    "one file", "shards over one file", "one file over shards", "shards over one file, in place",
    "one file over shards, in place", "a new directory", "pipeline", "pipeline, in place", "component", "tokenizer",
    "convert", "convert to a file", "learned word", "LoRA", "prompt cache", "training", "PNG",
)  # fmt: skip
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libraries are preloaded as Linux does")


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """The library that kills."""
    from ppsd3.ops.native import library

    path = tmp_path_factory.mktemp("faults") / "faults.so"
    command = [
        *library.find_compiler(),
        "-x",
        "c",
        "-shared",
        "-fPIC",
        "-O1",
        str(HERE / "faults.c"),
        "-o",
        str(path),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return path


@pytest.fixture
def place(tmp_path):
    """A directory, in memory if possible: what is saved some thousand times need not reach a disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield pathlib.Path(directory)


def run(program, *arguments, preload=None):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])}
    environment.update({} if preload is None else {"LD_PRELOAD": str(preload)})
    command = [sys.executable, "-W", "ignore", str(HERE / program), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    return result.stdout


def test_some_events_and_some_writes(faults, place):
    kills = [f"{name}:41:0" for name in ("one file", "shards over one file, in place", "LoRA", "PNG")]
    said = run("scenarios.py", place, *kills, f"shards over one file, in place:31:{errno.ENOSPC}", preload=faults)
    assert said.count(" events") == 5


def test_a_reader_beside_a_writer(place):
    run("beside.py", "model", place / "saved", 1)


@pytest.mark.machine
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_event(faults, place, name):
    run("scenarios.py", place, f"{name}:1:0", preload=faults)


@pytest.mark.machine
@pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_random_kills(faults, place, times):
    names = ("one file", "shards over one file", "pipeline", "convert", "LoRA", "prompt cache", "PNG")
    said = run("scenarios.py", place, *(f"{name}:random:{times}" for name in names), preload=faults)
    assert said.count(f" {times} killed") == len(names)


@pytest.mark.machine
def test_export_is_killed_at_some_events(faults, place):
    """What Paddle's own code writes; each time takes a second."""
    run("scenarios.py", place, "export:7:0", f"export:31:{errno.ENOSPC}", preload=faults)


@pytest.mark.machine
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO], ids=errno.errorcode.get)
def test_every_write_fails(faults, place, error):
    step = 1 if error == errno.ENOSPC else 7
    run("scenarios.py", place, *(f"{name}:{step}:{error}" for name in SCENARIOS), preload=faults)


@pytest.mark.machine
@pytest.mark.parametrize("kind", ["model", "model in place", "pipeline", "pipeline in place"])
def test_a_reader_beside_a_writer_for_long(place, kind):
    run("beside.py", kind, place / "saved", 60 if kind == "pipeline" else 20)
