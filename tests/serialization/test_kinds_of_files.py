"""Sound and broken safetensors files: the reader opens what the safetensors library opens, and refuses the rest."""

import os
import tracemalloc

import numpy as np
import pytest
import safetensors
from helpers.process import run
from helpers.safetensors_files import DATA, KINDS, entry, file

from ppsd3.loaders.recognition import Component
from ppsd3.serialization import SafetensorsFile
from ppsd3.serialization.writers import StoredTensor
from ppsd3.utils.errors import CheckpointFormatError, CheckpointNotFoundError

NEWER = {"f8_e4m3fnuz": (0, 8)}  # kind -> the version of the library that knows its dtype
VERSION = tuple(map(int, safetensors.__version__.split(".")[:2]))
STRICTER = {"dup_keys_same"}  # that the library takes: two tensors of one name, the last of which counts
ACCEPTED = sorted(name for name, (accepted, _) in KINDS.items() if accepted and NEWER.get(name, VERSION) <= VERSION)
SOUND = sorted(set(ACCEPTED) - STRICTER)
BROKEN = sorted(set(KINDS) - set(ACCEPTED))
# Kinds whose tensor no array or no Paddle tensor can hold -> what the error says of it.
UNREADABLE = {
    "f8_e8m0": "F8_E8M0", "f8_e4m3fnuz": "F8_E4M3FNUZ", "f4": "F4", "f6_e2m3": "F6_E2M3", "c64": "C64", "u32": "U32",
    "u64": "U64", "huger_empty_shape": "shape", "a_thousand_axes": "1000 axes",
}  # fmt: skip
# Kinds that are recognized -> what is said in place of the library's reason.
RECOGNIZED = {
    "empty_file": "is empty", "one_byte_short": "1 of 77 bytes are missing", "past_end": "8 of 86 bytes are missing",
}  # fmt: skip
MEMORY = 1 << 24  # bytes that opening may take; the largest file here has a few million


@pytest.fixture
def written(tmp_path, request):
    """The path of a file of the kind that the test is called with."""
    path = tmp_path / f"{request.param}.safetensors"
    path.write_bytes(KINDS[request.param][1])
    return path


def test_every_kind_is_there():
    assert len(SOUND) >= 31 and len(BROKEN) >= 42
    assert set(UNREADABLE) - set(NEWER) <= set(SOUND)


@pytest.mark.parametrize("written", BROKEN, indirect=True)
def test_a_broken_file_is_refused_with_its_name_and_the_reason(written):
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(written, "np"):
        pass
    tracemalloc.start()
    with pytest.raises(CheckpointFormatError) as caught:
        SafetensorsFile(written)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(caught.value)
    assert str(written) in message and "Download or write it again" in message and len(message) < 1000
    assert RECOGNIZED.get(written.stem, str(caught.value.__cause__)[:100]) in message
    assert peak < MEMORY


@pytest.mark.parametrize("written", SOUND, indirect=True)
def test_a_sound_file_is_read_as_the_library_reads_it(written):
    expected = dict(safetensors.deserialize(written.read_bytes()))
    tracemalloc.start()
    read = SafetensorsFile(written)
    assert sorted(read.keys()) == sorted(expected)
    for name, tensor in expected.items():
        assert list(read.info(name).shape) == tensor["shape"]
        assert read.info(name).nbytes == len(tensor["data"])
        if written.stem not in UNREADABLE:
            assert read.array(name).tobytes() == bytes(tensor["data"])
            assert list(read.read(name).shape) == tensor["shape"]
    assert tracemalloc.get_traced_memory()[1] < MEMORY
    tracemalloc.stop()


@pytest.mark.parametrize("written", sorted(set(UNREADABLE) & set(SOUND)), indirect=True)
def test_a_tensor_that_cannot_be_held_is_an_error_when_it_is_needed(written):
    read = SafetensorsFile(written)
    for need in (read.array, read.load, read.read, lambda name: StoredTensor(read, name)):
        with pytest.raises(CheckpointFormatError, match=f"'a'.*{UNREADABLE[written.stem]}") as caught:
            need("a")
        assert str(written) in str(caught.value)


def test_a_tensor_that_cannot_be_held_does_not_hinder_the_others(tmp_path):
    header = {"packed": entry("F4", (8,), 0, 4), "codes": entry("U32", (1,), 4, 8), "a": entry("F32", (2,), 8, 16)}
    path = tmp_path / "mixed.safetensors"
    path.write_bytes(file(header, DATA[:4] * 2 + np.float32([3, 4]).tobytes()))
    read = SafetensorsFile(path)
    assert read.keys() == ["packed", "codes", "a"]
    np.testing.assert_array_equal(read.read("a").numpy(), [3, 4])
    assert Component.of("mixed", "", read).bytes_on_disk == 16


@pytest.mark.parametrize("name", ["a", "\\u0061"])
def test_a_name_that_is_there_twice_is_refused(tmp_path, name):
    path, one = tmp_path / "x.safetensors", '{"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}'
    escaped = one.replace("data_offsets", "data\\u005foffsets")
    for first, second in ((one, one), (escaped, one), (one.replace("8]}", "4]}"), one)):
        path.write_bytes(file(f'{{"a": {first}, "{name}": {second}}}'))
        with pytest.raises(CheckpointFormatError, match="'a' twice") as caught:
            SafetensorsFile(path)
        assert str(path) in str(caught.value)


def test_text_that_looks_like_an_entry_is_no_tensor(tmp_path):
    path = tmp_path / "x.safetensors"
    header = {"__metadata__": {"data_offsets": '"data_offsets"'}, "data_offsets": entry()}
    path.write_bytes(file(header))
    assert SafetensorsFile(path).keys() == ["data_offsets"]


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.machine)])
def test_a_flipped_bit_of_the_header_changes_no_tensor(tmp_path, step):
    """Whatever it is in, a tensor that still has its name has its bytes, or the file is refused by its name."""
    path, data = tmp_path / "x.safetensors", np.random.default_rng(0).bytes(256)
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", (4, 8), 0, 128),
        "b.weight": entry("BF16", (8, 8), 128, 256),
    }
    sound = file(header, data)

    def read(content):
        """name -> (what the header says, bytes), or None for what is refused."""
        path.write_bytes(content)
        try:
            opened = SafetensorsFile(path)
        except CheckpointFormatError as error:
            return None if str(path) in str(error) else error
        return {name: (opened.info(name)[2:], opened.array(name).tobytes()) for name in opened.keys()}

    expected, refused = read(sound), 0
    for position in range(0, 8 * (len(sound) - len(data)), step):
        flipped = bytearray(sound)
        flipped[position // 8] ^= 1 << position % 8
        found = read(flipped)
        refused += found is None
        changed = [name for name in set(found or ()) & set(expected) if found[name] != expected[name]]
        assert not changed, position
    assert refused > 500 // step


def test_order_of_empty_tensors_is_the_same_each_time(tmp_path):
    path = tmp_path / "empty.safetensors"
    path.write_bytes(file({name: entry("F32", (0,), 0, 0) for name in "hgfedcba"}, b""))
    assert all(SafetensorsFile(path).keys() == list("abcdefgh") for _ in range(5))


@pytest.mark.parametrize("name", ["plain", "with space", "名前é", "\udcff", "a'b\"c%"])
@pytest.mark.parametrize("kind", [str, os.fsencode, os.fspath])
def test_paths_of_every_kind(tmp_path, name, kind):
    path = f"{tmp_path}/{name}.safetensors"
    with open(path, "wb") as out:
        out.write(KINDS["good_f32"][1])
    assert SafetensorsFile(kind(path)).keys() == ["a"]


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "absent", f"{tmp_path}/a\0b"):
        with pytest.raises(CheckpointNotFoundError, match=r"does not exist|no file|directory"):
            SafetensorsFile(path)


def test_descriptors_and_mappings_are_given_back(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(KINDS["good_f32"][1])

    def held():
        with open("/proc/self/maps", encoding="utf-8") as maps:
            return len(os.listdir("/proc/self/fd")), sum(str(path) in line for line in maps)

    before = held()
    opened = SafetensorsFile(path)
    assert held()[1] == 1, "only our own mapping is left"
    del opened
    path.write_bytes(b"broken")
    with pytest.raises(CheckpointFormatError):
        SafetensorsFile(path)
    assert held() == before


def test_a_tensor_beyond_4_gigabytes(tmp_path):
    """In a file with a hole, which takes no space on the disk."""
    path, far = tmp_path / "large.safetensors", 5 << 30
    start = path.write_bytes(file({"a": entry("U8", (far,), 0, far), "b": entry("F32", (2,), far, far + 8)}, b""))
    with open(path, "r+b") as out:
        out.seek(start + far)
        out.write(np.float32([1.5, -2]).tobytes())
    read = SafetensorsFile(path)
    np.testing.assert_array_equal(read.load("b"), [1.5, -2])
    np.testing.assert_array_equal(read.load("b", "float16"), np.float16([1.5, -2]))


def test_a_file_that_is_replaced_while_it_is_opened(tmp_path, monkeypatch):
    path, other = tmp_path / "x.safetensors", tmp_path / "other"
    path.write_bytes(KINDS["good_f32"][1])
    other.write_bytes(file({"a": entry("F32", (4,), 0, 16)}, DATA * 2))
    original = safetensors.safe_open

    def replace_first(*arguments):
        if other.exists():
            os.replace(other, path)
        return original(*arguments)

    monkeypatch.setattr(safetensors, "safe_open", replace_first)
    opened = SafetensorsFile(path)  # once more
    assert opened.info("a").shape == (4,) and opened.array("a").tobytes() == DATA * 2


def test_torch_is_not_imported(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(KINDS["good_f32"][1])
    code = f"""
import sys
from ppsd3.serialization import SafetensorsFile
SafetensorsFile({str(path)!r}).read("a")
print("torch" in sys.modules)
"""
    assert run(code).strip() == "False"
