"""The test device itself: what it forbids, and what it counts."""

import numpy as np
import paddle
import pytest
from helpers import device

pytestmark = pytest.mark.device


def test_tensors_are_there_and_computed():
    tensor = paddle.arange(6, dtype="float32")
    assert device.NAME in str(tensor.place)
    np.testing.assert_array_equal((tensor * 2 + 1).numpy(), [1, 3, 5, 7, 9, 11])


def test_bytes_are_those_of_the_tensors():
    before = device.device_bytes()
    kept = paddle.empty([10, 7])
    device.reset_peak()
    large = paddle.empty([1001, 3])
    assert device.device_bytes() == before + 4 * (70 + 3003)
    del large
    assert device.device_bytes() == before + 4 * 70
    assert device.peak_bytes() == before + 4 * (70 + 3003)
    del kept
    assert device.device_bytes() == before


READS = {
    "numpy": lambda x, number: x.numpy(),
    "item": lambda x, number: number.item(),
    "float": lambda x, number: float(number),
    "bool": lambda x, number: bool(number),
    "tolist": lambda x, number: x.tolist(),
    "numpy takes it": lambda x, number: np.asarray(x),
    "cpu": lambda x, number: x.cpu(),
    "a scalar of an operation": lambda x, number: paddle.full([2], number),
    "a shape of an operation": lambda x, number: paddle.zeros([number.astype("int32"), 2]),
    "an index": lambda x, number: x[number.astype("int32")],
}


@pytest.mark.parametrize("name", READS)
def test_reads_of_the_host_are_counted(name):
    x, number = paddle.ones([4, 4]), paddle.ones([])
    before = device.host_reads()
    READS[name](x, number)
    assert device.host_reads() == before + 1


def test_operations_are_no_reads():
    x, rows = paddle.ones([4, 4]), paddle.to_tensor([0, 2])
    before, to_host = device.host_reads(), device.copies()[1]
    (x @ x + paddle.nn.functional.softmax(x)[rows].sum()).reshape([2, 8]).astype("float64").cast("int32")
    assert device.host_reads() == before
    assert device.copies()[1] > to_host  # operations compute on the CPU


def test_a_stray_pointer_ends_the_process_and_is_named():
    with pytest.raises(AssertionError, match=r"Segmentation fault[\s\S]*string_at"):
        device.run("import ctypes\nctypes.string_at(paddle.ones([4]).data_ptr(), 4)")


def test_a_process_of_its_own():
    assert device.run("print(paddle.ones([2]).place)") == f"Place({device.NAME}:0)\n"
