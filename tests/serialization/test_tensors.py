"""Casts round to nearest even on every Paddle version, and numpy memory becomes a tensor without a copy."""

import gc
import sys

import numpy as np
import paddle
import pytest

from ppsd3 import ops
from ppsd3.serialization.tensors import cast, dtype_name, floating_dtype, from_numpy, paddle_dtype, put
from ppsd3.utils.errors import InputError


def nearest_bfloat16(values):
    """Bits of the nearest bfloat16 by exact comparison in float64, ties to even."""
    low = (values.view(np.uint32) >> 16).astype(np.uint32)
    widen = lambda bits: (bits << 16).view(np.float32).astype(np.float64)  # noqa: E731
    below, above = np.abs(values - widen(low)), np.abs(widen(low + 1) - values)
    return np.where((above < below) | ((above == below) & (low & 1 == 1)), low + 1, low).astype(np.uint16)


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.standard_normal(5000) * s for s in (1, 1e-3, 1e-6)]).astype(np.float32)


def test_float16_rounds_to_nearest_even(values):
    np.testing.assert_array_equal(cast(paddle.to_tensor(values), "float16").numpy(), values.astype(np.float16))


def test_bfloat16_rounds_to_nearest_even(values):
    np.testing.assert_array_equal(cast(paddle.to_tensor(values), paddle.bfloat16).numpy(), nearest_bfloat16(values))


def test_every_bfloat16_to_float16():
    bits = np.arange(65536, dtype=np.uint16)
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        expected = wide.astype(np.float16)
    np.testing.assert_array_equal(cast(from_numpy(bits), "float16").numpy(), expected)


def test_special_values():
    values = paddle.to_tensor(np.array([np.inf, -np.inf, np.nan, -0.0, 1e30], np.float32))
    half, bfloat16 = cast(values, "float16").numpy(), cast(cast(values, "bfloat16"), "float32").numpy()
    np.testing.assert_array_equal(half, np.array([np.inf, -np.inf, np.nan, -0.0, np.inf], np.float16))
    np.testing.assert_array_equal(bfloat16[:4], values.numpy()[:4])


def test_from_numpy_shares_and_keeps_alive():
    array = np.zeros(1000, np.float32)
    count = sys.getrefcount(array)
    tensor = from_numpy(array)
    assert sys.getrefcount(array) > count
    array[3] = 5
    assert float(tensor[3]) == 5
    slot = paddle.create_parameter([1000], "float32")
    put(slot, tensor)
    del tensor
    gc.collect()
    array[4] = 6
    assert float(slot[4]) == 6 and not slot.stop_gradient
    del slot
    gc.collect()
    assert sys.getrefcount(array) == count


def test_put_takes_views():
    slot = paddle.create_parameter([3, 2], "float32")
    source = np.arange(6, dtype=np.float32).reshape(2, 3)
    put(slot, paddle.transpose(paddle.to_tensor(source), [1, 0]))
    np.testing.assert_array_equal(slot.numpy(), source.T)


def test_dtype_names():
    for dtype in (paddle.float16, "float16", np.float16, "paddle.float16"):
        assert dtype_name(dtype) == "float16"
    assert paddle_dtype("bfloat16") == paddle.bfloat16
    assert floating_dtype(None) == paddle.float32
    with pytest.raises(InputError, match="float16"):
        floating_dtype("uint8")


@pytest.mark.parametrize("native", [True, False])
def test_every_float16_becomes_float32_exactly(native):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    with ops.use_native(native):
        floats = cast(paddle.to_tensor(halves), "float32").numpy()
        np.testing.assert_array_equal(floats, halves.astype(np.float32))
        floats = cast(paddle.to_tensor(finite), "float32").numpy()  # with none among them that needs another way
    np.testing.assert_array_equal(
        floats.view(np.uint32), finite.astype(np.float32).view(np.uint32)
    )  # signs of zero too
