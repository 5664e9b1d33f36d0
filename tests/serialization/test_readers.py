"""The safetensors reader: every dtype exactly, every kind of damage by name."""

import json
import pickle
import struct
import zipfile

import numpy as np
import paddle
import pytest

from ppsd3.ops import use_native
from ppsd3.serialization import SafetensorsFile
from ppsd3.serialization.writers import write_tensors
from ppsd3.utils.errors import CheckpointFormatError, CheckpointNotFoundError
from ppsd3.utils.files import atomic_write


def write(path, header, data=b"", pad=0):
    text = json.dumps(header).encode()
    text += b" " * ((-(len(text) + 8) % 8) + pad)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "code, dtype",
    [("F64", "f8"), ("F32", "f4"), ("F16", "f2"), ("I64", "i8"), ("I32", "i4"), ("U8", "u1"), ("BOOL", "?")],
)
def test_plain_dtypes_are_read_bit_for_bit(tmp_path, code, dtype):
    values = np.array([[0, 1, 0], [1, 1, 0]], dtype=dtype)
    path = write(tmp_path / "x.safetensors", {"a": entry(code, [2, 3], 0, values.nbytes)}, values.tobytes())
    tensor = SafetensorsFile(path).read("a")
    assert tensor.shape == [2, 3]
    assert tensor.numpy().dtype == np.dtype(dtype)
    np.testing.assert_array_equal(tensor.numpy(), values)


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    values = np.array([1.0, -2.5, 3.0e38, 2.0**-130], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    path = write(tmp_path / "x.safetensors", {"a": entry("BF16", [4], 0, 8)}, bits.tobytes())
    file = SafetensorsFile(path)
    assert file.read("a").dtype == paddle.bfloat16
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(file.read("a", paddle.float32).numpy(), expected)


@pytest.mark.parametrize("native", [True, False], ids=["native", "numpy"])
@pytest.mark.parametrize("code", ["F16", "BF16"])
def test_halves_of_every_kind_become_float32(tmp_path, code, native):
    """Every code, more of them than are read at once, and not at the file's start."""
    codes = np.tile(np.arange(1 << 16, dtype=np.uint16), 5)[:-3]
    header = {"first": entry("U8", [7], 0, 7), "a": entry(code, [codes.size], 7, 7 + codes.nbytes)}
    file = SafetensorsFile(write(tmp_path / "x.safetensors", header, b"\0" * 7 + codes.tobytes()))
    if code == "F16":
        expected = codes.view(np.float16).astype(np.float32)
    else:
        expected = (codes.astype(np.uint32) << 16).view(np.float32)
    with use_native(native), np.errstate(invalid="ignore"):  # some codes are signalling NaNs
        np.testing.assert_array_equal(file.load("a", "float32"), expected)
        np.testing.assert_array_equal(file.load("a", "float32", scale=0.5), 0.5 * expected)


@pytest.mark.parametrize("native", [True, False], ids=["native", "numpy"])
def test_file_cut_off_after_it_was_opened(tmp_path, native):
    path = write(tmp_path / "x.safetensors", {"a": entry("F16", [100_000], 0, 200_000)}, b"\0" * 200_000)
    file = SafetensorsFile(path)
    with open(path, "r+b") as writer:
        writer.truncate(150_001)
    with use_native(native), pytest.raises(CheckpointFormatError, match=r"x.safetensors .* cut off"):
        file.load("a", "float32")


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2"])
def test_every_fp8_code_has_its_value(tmp_path, code):
    path = write(tmp_path / "x.safetensors", {"a": entry(code, [256], 0, 256)}, bytes(range(256)))
    values = SafetensorsFile(path).read("a", "float32").numpy()
    bits, bias, top = (3, 7, 15) if code == "F8_E4M3" else (2, 15, 31)
    for byte in range(256):
        exponent, mantissa = (byte & 0x7F) >> bits, byte & (1 << bits) - 1
        if code == "F8_E4M3":
            special = np.nan if byte & 0x7F == 0x7F else None
        else:
            special = None if exponent < top else (np.inf if mantissa == 0 else np.nan)
        scale = 2.0 ** (max(exponent, 1) - bias)
        value = scale * ((exponent > 0) + mantissa / (1 << bits)) if special is None else special
        np.testing.assert_equal(float(values[byte]), -value if byte & 0x80 else value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_fp8_to_16_bits_loses_nothing(tmp_path, dtype):
    codes = bytes(code for code in range(256) if code & 0x7F < 0x7C)
    path = write(tmp_path / "x.safetensors", {"a": entry("F8_E5M2", [len(codes)], 0, len(codes))}, codes)
    file = SafetensorsFile(path)
    wide = file.read("a", "float32").numpy()
    np.testing.assert_array_equal(file.read("a", dtype).cast("float32").numpy(), wide)


def test_same_dtype_is_the_mapping_itself_and_the_file_never_changes(tmp_path):
    values = np.arange(4096, dtype=np.float32)
    path = write(tmp_path / "x.safetensors", {"a": entry("F32", [4096], 0, values.nbytes)}, values.tobytes())
    before = path.read_bytes()
    file = SafetensorsFile(path)
    first, second = file.read("a"), file.read("a")
    first.add_(paddle.ones([4096]))
    assert second.numpy()[5] == 6.0, "both tensors are the same mapped memory"
    assert path.read_bytes() == before


def test_tensor_outlives_its_file(tmp_path):
    values = np.arange(10, dtype=np.float32)
    path = write(tmp_path / "x.safetensors", {"a": entry("F32", [10], 0, 40)}, values.tobytes())
    tensor = SafetensorsFile(path).read("a")
    path.unlink()
    np.testing.assert_array_equal(tensor.numpy(), values)


@pytest.mark.parametrize("pad", range(8))
def test_unaligned_data_is_read(tmp_path, pad):
    values = np.arange(10, dtype=np.float32)
    path = write(tmp_path / "x.safetensors", {"a": entry("F32", [10], 0, 40)}, values.tobytes(), pad=pad)
    np.testing.assert_array_equal((SafetensorsFile(path).read("a") + 1).numpy(), values + 1)


def test_scalars_and_empty_tensors(tmp_path):
    header = {"scalar": entry("F32", [], 0, 4), "empty": entry("F16", [0, 3], 4, 4)}
    file = SafetensorsFile(write(tmp_path / "x.safetensors", header, np.float32(7).tobytes()))
    assert float(file.read("scalar")) == 7.0
    assert file.read("empty").shape == [0, 3]


def test_metadata_and_order(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "b": entry("U8", [1], 1, 2), "a": entry("U8", [1], 0, 1)}
    file = SafetensorsFile(write(tmp_path / "x.safetensors", header, b"\1\2"))
    assert file.metadata == {"format": "pt"}
    assert file.keys() == ["a", "b"]


def refused(path, *words, error=CheckpointFormatError):
    with pytest.raises(error) as caught:
        SafetensorsFile(path)
    for word in (str(path),) + words:
        assert word in str(caught.value)


def test_absent_file(tmp_path):
    refused(tmp_path / "no.safetensors", error=CheckpointNotFoundError)


def test_html_error_page_is_no_checkpoint(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"<!doctype html><html><body>404</body></html>")
    refused(path, "web page")


def test_git_lfs_pointer_is_no_checkpoint(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    refused(path, "git lfs pull")


def test_pickles_are_refused_whatever_they_are_called(tmp_path):
    disguised, archive, named = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.pdparams"
    disguised.write_bytes(pickle.dumps({"weight": [0.0] * 10}))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({}))
    named.write_bytes(b"anything at all")
    for path in (disguised, archive, named):
        refused(path, "pickle", "safetensors")


def test_a_file_that_is_replaced_while_it_is_opened(tmp_path, monkeypatch):
    """Header and data are of one file, or it is opened again."""
    path = tmp_path / "x.safetensors"
    numbers = iter((2.0, 3.0))

    def save(value, size=8):
        with atomic_write(path) as file:
            write_tensors(file, {"x": paddle.full([size], value, "float32")})

    save(1.0)
    real = SafetensorsFile._read_header

    def read(self, start):
        found = real(self, start)
        for value in numbers:
            save(value, size=int(value) * 8)  # the second time the size is another
            break
        return found

    monkeypatch.setattr(SafetensorsFile, "_read_header", read)
    file = SafetensorsFile(path)
    assert file.info("x").shape == (24,) and float(file.read("x").max()) == 3.0
