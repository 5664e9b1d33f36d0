"""An index of shards from a stranger: it names files beside it, each tensor in one of them, or is refused."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy
from helpers.process import run

from ppsd3.serialization import Checkpoint
from ppsd3.utils.errors import CheckpointFormatError, CheckpointNotFoundError

STEM = "diffusion_pytorch_model"
INDEX = f"{STEM}.safetensors.index.json"
ONE, TWO = f"{STEM}-00001-of-00002.safetensors", f"{STEM}-00002-of-00002.safetensors"


@pytest.fixture
def directory(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / ONE)
    safetensors.numpy.save_file({"b": np.zeros(3, np.float32)}, tmp_path / TWO)
    return tmp_path


def opened(directory, weight_map, **others):
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map, **others}))
    return Checkpoint.open(str(directory), STEM)


def test_a_sound_index(directory):
    checkpoint = opened(directory, {"a": ONE, "b": TWO})
    assert checkpoint.keys() == ["a", "b"]
    assert checkpoint.read("b").tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "weight_map, says",
    [
        ({"a": ONE, "b": "../" + TWO}, "not beside it"),
        ({"a": ONE, "b": "/etc/passwd"}, "not beside it"),
        ({"a": ONE, "b": "sub/" + TWO}, "not beside it"),
        ({"a": ONE, "b": ".."}, "are not beside it"),
        ({"a": ONE, "b": ""}, "are not beside it"),
        ({"a": ONE, "b": "x\0y"}, "are not beside it"),
        ({"a": ONE, "b": "absent.safetensors"}, "are not beside it: absent"),
        ({f"t{i}": f"{i}.safetensors" for i in range(10**5)}, "100000 of them are not beside it"),
        ({"a": ONE, "b": ONE}, "tensor 'b' is in"),
        ({"a": TWO, "b": TWO}, "tensor 'a' is in"),
        ({"a": ONE, "b": 5}, "tensor 'b' is in 5, which is no file"),
        ({"a": ONE, "b": [TWO]}, "which is no file"),
        ({"a": ONE, "b": None}, "which is no file"),
        ({}, "no 'weight_map'"),
        ([ONE, TWO], "no 'weight_map'"),
        (None, "no 'weight_map'"),
    ],
)
def test_an_index_that_lies(directory, weight_map, says):
    with pytest.raises((CheckpointFormatError, CheckpointNotFoundError), match=says) as caught:
        opened(directory, weight_map)
    assert str(directory / INDEX) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_tensor_in_two_shards(directory):
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}, directory / TWO)
    with pytest.raises(CheckpointFormatError, match="tensor 'a' is in both"):
        opened(directory, {"a": ONE, "b": TWO})


def test_links_into_the_hubs_cache_are_followed(directory, tmp_path_factory):
    """The hub's snapshots are links to its blobs."""
    blobs = tmp_path_factory.mktemp("blobs")
    os.rename(directory / TWO, blobs / "0123")
    os.symlink(blobs / "0123", directory / TWO)
    assert opened(directory, {"a": ONE, "b": TWO}).keys() == ["a", "b"]


def test_an_index_that_is_no_json(directory):
    for content in (b"", b"[" * 10**5, b'{"weight_map": {"a": 1, "a": 2}}', b"\xff"):
        (directory / INDEX).write_bytes(content)
        with pytest.raises(CheckpointFormatError) as caught:
            Checkpoint.open(str(directory), STEM)
        assert str(directory / INDEX) in str(caught.value)


# Files of less than a megabyte, in an address space of 1 GB beside what the imports take, and 5 s.
_CHILD = """
import resource, signal, sys
from ppsd3.serialization import SafetensorsFile
from ppsd3.serialization.pdparams import PdparamsFile
from ppsd3.utils.errors import PPSD3Error

taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 1_000_000_000,) * 2)
for path in sys.argv[1:]:
    signal.setitimer(signal.ITIMER_VIRTUAL, 5)
    try:
        file = (PdparamsFile if path.endswith("pdparams") else SafetensorsFile)(path)
        for name in file.keys():
            file.load(name)
        print("read")
    except PPSD3Error as error:
        print("refused" if path in str(error) else "nameless")
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
"""


@pytest.mark.machine
def test_a_small_file_takes_neither_memory_nor_time(tmp_path):
    def header(text, length=None):
        return (len(text) if length is None else length).to_bytes(8, "little") + text

    def tensor(shape, stop=0):
        return json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, stop]}}).encode()

    def pickled(*parts):
        return b"\x80\x04" + b"".join(parts) + b"."

    contents = {
        "length.safetensors": header(b"{}", 2**63),
        "levels.safetensors": header(b'{"a":' * 100_000),
        "axes.safetensors": header(tensor([1] * 100_000, 4)) + bytes(4),
        "empty.safetensors": header(tensor([0, 2**62])),
        "large.safetensors": header(tensor([2**40], 2**42)),
        "names.safetensors": header(
            json.dumps({str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(15_000)}).encode()
        ),
        "lists.pdparams": pickled(b"(" * 900_000),
        "tuples.pdparams": pickled(b")" + b"\x85" * 900_000),
        "dicts.pdparams": pickled(b"}" * 900_000),
        "memo.pdparams": pickled(b")" + b"\x94" * 900_000),
        "doubled.pdparams": pickled(b")" + b"\x94h\x00\x86" * 1000),
        "text.pdparams": pickled(b"\x8d" + (2**62).to_bytes(8, "little")),
        "digits.pdparams": pickled(b"L" + b"9" * 900_000 + b"L\n"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert len(content) < 1 << 20
    found = run(_CHILD, *(tmp_path / name for name in contents)).split()
    assert dict(zip(contents, found)) == {**dict.fromkeys(contents, "refused"), "names.safetensors": "read"}
