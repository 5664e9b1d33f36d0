"""Linear layers by Strassen's algorithm: sizes that fit no block, both depths, and when it is chosen."""

import numpy as np
import paddle
import pytest

from ppsd3 import ops
from ppsd3.ops import native
from ppsd3.ops.native import interface

pytestmark = pytest.mark.skipif(
    not (native.status()[0] and hasattr(native.lib(), "ppsd3_strassen")), reason="this CPU has no AVX-512"
)

BAR = 4e-6  # max |error| / max |result|, against float64; the usual way has 5e-7


def operands(m, n, k, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((m, k), dtype="float32"),
        (rng.standard_normal((n, k)) / k**0.5).astype("float32"),
        rng.standard_normal(n).astype("float32"),
    )


def strassen(x, weight, bias, levels, gelu_after=False):
    x, weight, bias = paddle.to_tensor(x), paddle.to_tensor(weight), None if bias is None else paddle.to_tensor(bias)
    out = paddle.full([x.shape[0], weight.shape[0]], float("nan"))
    pointers = map(interface._pointer, (x, weight, bias, out))
    native.lib().ppsd3_strassen(*pointers, *x.shape[:1], *weight.shape, levels, gelu_after)
    return out.numpy()


def error(result, expected):
    return np.abs(result - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(
    "m, n, k",
    [
        (24, 256, 64),
        (1, 1, 1),
        (7, 5, 3),
        (97, 257, 65),
        (200, 300, 1000),
        (193, 512, 2049),  # one more k than two pieces of it hold
        (500, 130, 2432),
        (1031, 1100, 129),
    ],
)
def test_any_size(m, n, k, levels):
    x, weight, bias = operands(m, n, k)
    expected = x.astype("float64") @ weight.T.astype("float64")
    assert error(strassen(x, weight, None, levels), expected) <= BAR
    assert error(strassen(x, weight, bias, levels), expected + bias) <= BAR


@pytest.mark.parametrize("levels", [1, 2])
def test_gelu_after_it(levels):
    x, weight, bias = operands(150, 700, 1100)
    expected = x.astype("float64") @ weight.T.astype("float64") + bias
    expected = expected / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (expected + 0.044715 * expected**3)))
    assert error(strassen(x, weight, bias, levels, gelu_after=True), expected) <= BAR


def test_the_same_input_gives_the_same_bits():
    x, weight, bias = operands(1100, 1030, 1040)
    first = strassen(x, weight, bias, 2)
    assert all(np.array_equal(first, strassen(x, weight, bias, 2)) for _ in range(3))


def test_chosen_for_wide_layers_with_many_rows():
    assert native.strassen_levels(2048, 1536, 1536) == native.strassen_levels(1024, 6144, 1536) == 2
    assert native.strassen_levels(512, 4096, 4096) == 1
    for few in ((255, 1536, 1536), (4096, 512, 1536), (4096, 1536, 512)):
        assert native.strassen_levels(*few) == 0
    for precision in ("highest", "medium"):
        with ops.float32_matmul_precision(precision):
            assert native.strassen_levels(2048, 1536, 1536) == 0


def test_linear_layers_take_it():
    x, weight, bias = (paddle.to_tensor(array) for array in operands(2 * 520, 1030, 1024))
    x = x.reshape([2, 520, 1024])
    layer = ops.Linear(1024, 1030)
    layer.weight.set_value(weight)
    layer.bias.set_value(bias)
    with paddle.no_grad():
        for compute in (layer, lambda x: ops.linear_gelu(x, layer)):
            with ops.float32_matmul_precision("highest"):
                usual = compute(x).numpy()
            fast = compute(x).numpy()
            assert fast.shape == (2, 520, 1030) and 0 < error(fast, usual) <= BAR


def test_gradients_go_through():
    x, weight, bias = (paddle.to_tensor(array, stop_gradient=False) for array in operands(1024, 1030, 1024))
    found = []
    for precision in ("highest", "high"):
        with ops.float32_matmul_precision(precision):
            ops.linear(x, weight, bias).square().mean().backward()
        found.append([tensor.grad.numpy() for tensor in (x, weight, bias)])
        for tensor in (x, weight, bias):
            tensor.clear_gradient()
    for usual, fast in zip(*found):
        assert error(fast, usual) <= 2e-5
