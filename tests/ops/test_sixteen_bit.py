"""float16 and bfloat16 to float32: every number there is, any count, any position in a file, by the library itself."""

import ctypes
import os

import numpy as np
import pytest

from ppsd3.ops import native

OK, READ_FAILED = 0, 2  # of interface.h
PATTERNS = np.arange(1 << 16, dtype=np.uint16)

pytestmark = pytest.mark.skipif(not native.status()[0], reason="no native kernels here")


@pytest.fixture
def library():
    """The library without what Python says of its functions, which raise on any status."""
    return ctypes.CDLL(native.lib()._name)


def expected(bits, dtype):
    return bits.view(np.float16).astype("float32") if dtype == "float16" else (bits.astype("u4") << 16).view("float32")


def assert_equal(found, bits, dtype):
    """Bit by bit, but that a NaN may be any."""
    wanted = expected(bits, dtype)
    nan = np.isnan(wanted)
    assert np.array_equal(np.isnan(found), nan)
    assert np.array_equal(found[~nan].view("u4"), wanted[~nan].view("u4"))


def address(array):
    return ctypes.c_void_p(array.ctypes.data)


def dtypes(library):
    return ("bfloat16", "float16") if hasattr(library, "ppsd3_float16_to_float32") else ("bfloat16",)


def test_every_number(library):
    for dtype in dtypes(library):
        out = np.empty(PATTERNS.size, "float32")
        arguments = address(PATTERNS), address(out), ctypes.c_int64(out.size), ctypes.c_bool(dtype == "bfloat16")
        assert library.ppsd3_cast_weight(*arguments) == OK
        assert_equal(out, PATTERNS, dtype)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100_003])
def test_any_count(library, count):
    bits = np.resize(PATTERNS[:31000], count)
    for dtype in dtypes(library):
        out = np.full(count + 1, 5, "float32")
        arguments = address(bits), address(out), ctypes.c_int64(count), ctypes.c_bool(dtype == "bfloat16")
        assert library.ppsd3_cast_weight(*arguments) == OK
        assert_equal(out[:count], bits, dtype)
        assert out[count] == 5


@pytest.mark.parametrize("position, count", [(0, 1), (3, 100_003), (8, 65536)])
def test_numbers_of_a_file(library, tmp_path, position, count):
    if not hasattr(library, "ppsd3_read_floats"):
        pytest.skip("this system has no pread")
    bits = np.resize(PATTERNS[:31000], count)
    path = tmp_path / "file"
    path.write_bytes(b"x" * position + bits.tobytes())
    with open(path, "rb") as file:
        for dtype in dtypes(library):
            is_bfloat16, out = ctypes.c_bool(dtype == "bfloat16"), np.empty(count, "float32")
            start = ctypes.c_int64(file.fileno()), ctypes.c_int64(position)
            assert library.ppsd3_read_floats(*start, address(out), ctypes.c_int64(count), is_bfloat16) == OK
            assert_equal(out, bits, dtype)
            os.truncate(path, position + 2 * count - 1)
            assert library.ppsd3_read_floats(*start, address(out), ctypes.c_int64(count), is_bfloat16) == READ_FAILED
            path.write_bytes(b"x" * position + bits.tobytes())
