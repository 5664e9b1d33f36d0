"""Products of matrices by each algorithm this CPU has: sizes that fit no block, both orders of each operand, and which
one is chosen when.
"""

import numpy as np
import paddle
import pytest

from ppsd3 import ops
from ppsd3.ops import dispatch, features, native
from ppsd3.utils import paddle_internals
from ppsd3.utils.errors import ConfigError

pytestmark = pytest.mark.skipif(not native.status()[0], reason="no native kernels here")

# Algorithm -> max |error| / max |result|, against float64; the usual way has 5e-7. Strassen's: levels are an option.
BARS = {("amx", None): 6e-7, ("strassen", 1): 4e-6, ("strassen", 2): 4e-6}
ROUNDED = [("amx bfloat16", None), ("avx512 bfloat16", None)]

SIZES = [  # rows, columns, k
    (24, 256, 64),
    (1, 1, 1),
    (7, 5, 3),
    (97, 257, 65),
    (200, 300, 1000),
    (193, 512, 2049),  # one more k than two pieces of Strassen's hold
    (290, 130, 513),  # one block of rows more than a slab has, one k more than a piece
    (500, 130, 2432),
    (1031, 1100, 129),
]


def operands(m, n, k, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((m, k), dtype="float32"),
        (rng.standard_normal((n, k)) / k**0.5).astype("float32"),
        rng.standard_normal(n).astype("float32"),
    )


def multiply(algorithm, a, b, *transposed, bias=None, **options):
    """The product by an entry of the table, whether or not it would be chosen."""
    name, levels = algorithm
    entry = dispatch.implementation("matmul", name)
    for feature in entry.features:
        if not features.has(feature):
            pytest.skip(features.missing(feature))
    options.update({"levels": levels} if levels else {})
    a, b, bias = (x if x is None else paddle.to_tensor(x) for x in (a, b, bias))
    return entry.function(a, b, *transposed, bias=bias, **options).numpy()


def error(result, expected):
    assert result.shape == expected.shape
    return np.abs(result - expected).max() / np.abs(expected).max()


def exact(x, weight, bias=None):
    return x.astype("float64") @ weight.T.astype("float64") + (0 if bias is None else bias)


def tanh_gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def to_bf16(x):
    """Rounded to the nearest bfloat16; as float64 so that sums add no error of their own."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("algorithm", BARS, ids=str)
@pytest.mark.parametrize("m, n, k", SIZES)
def test_any_size(algorithm, m, n, k):
    x, weight, bias = operands(m, n, k)
    assert error(multiply(algorithm, x, weight, transpose_y=True), exact(x, weight)) <= BARS[algorithm]
    result = multiply(algorithm, x, weight, transpose_y=True, bias=bias)
    assert error(result, exact(x, weight, bias)) <= BARS[algorithm]


@pytest.mark.parametrize("algorithm", BARS, ids=str)
def test_gelu_after_it(algorithm):
    x, weight, bias = operands(150, 700, 1100)
    result = multiply(algorithm, x, weight, transpose_y=True, bias=bias, gelu_after=True)
    assert error(result, tanh_gelu(exact(x, weight, bias))) <= BARS[algorithm]


@pytest.mark.parametrize("algorithm", [("amx", None), *ROUNDED], ids=str)
@pytest.mark.parametrize("transpose_x", [False, True])
@pytest.mark.parametrize("transpose_y", [False, True])
@pytest.mark.parametrize("m, n, k", SIZES[2:6])
def test_either_order_of_each_operand(algorithm, transpose_x, transpose_y, m, n, k):
    x, weight, bias = operands(m, n, k)
    a, b = x.T.copy() if transpose_x else x, weight if transpose_y else weight.T.copy()
    if algorithm in ROUNDED:
        x, weight = to_bf16(x), to_bf16(weight)
    result = multiply(algorithm, a, b, transpose_x, transpose_y, bias=bias)
    assert error(result, exact(x, weight, bias)) <= 2e-6


@pytest.mark.parametrize("algorithm", [*BARS, *ROUNDED], ids=str)
def test_the_same_input_gives_the_same_bits(algorithm):
    x, weight, bias = operands(1100, 1030, 1040)
    first = multiply(algorithm, x, weight, transpose_y=True, bias=bias)
    for _ in range(3):
        assert np.array_equal(first, multiply(algorithm, x, weight, transpose_y=True, bias=bias))


def test_amx_keeps_every_bit_of_an_operand():
    """A number times one is itself: its three parts are all of it."""
    x = np.random.default_rng(0).standard_normal((70, 64), dtype="float32")
    assert np.array_equal(multiply(("amx", None), x, np.eye(64, dtype="float32")), x)
    assert np.array_equal(multiply(("amx", None), np.eye(64, dtype="float32"), x.T.copy()), x.T)


def test_amx_takes_numbers_large_and_small():
    x, weight, _ = operands(64, 64, 64)
    for scale in (1e30, 1e-20):
        result = multiply(("amx", None), x * np.float32(scale), weight, transpose_y=True)
        assert error(result, exact(x * np.float32(scale), weight)) <= 6e-7


def test_amx_passes_what_is_not_finite():
    x, weight, _ = operands(70, 40, 64)
    x[3, 5], x[50, 60] = np.nan, np.inf
    result = multiply(("amx", None), x, weight, transpose_y=True)
    assert [row for row in range(70) if not np.isfinite(result[row]).all()] == [3, 50]


SIZES_OF_LAYERS = {  # (rows, columns, k): what is taken where AMX is, and where only AVX-512 is
    (2048, 1536, 1536): ("amx", "strassen"),
    (512, 4096, 4096): ("amx", "strassen"),
    (255, 1536, 1536): ("amx", "native"),
    (4096, 512, 1536): ("amx", "native"),
    (4096, 1536, 512): ("amx", "native"),
    (2, 1536, 1536): ("native", "native"),
    (128, 128, 128): ("native", "native"),
}


@pytest.fixture(params=[True, False], ids=["AMX", "AVX-512"])
def amx(request, monkeypatch):
    """Whether the machine of a test has AMX."""
    missing = {"amx": None if request.param else "no AMX"}
    monkeypatch.setattr(features, "missing", missing.get)
    monkeypatch.setattr(dispatch.TABLE["matmul"], "_candidates", {})
    return request.param


def chosen(m, n, k, transpose_x=False, transpose_y=True):
    a, b = [k, m] if transpose_x else [m, k], [n, k] if transpose_y else [k, n]
    return dispatch.choose("matmul", paddle.empty(a), paddle.empty(b), transpose_x, transpose_y).name


def test_the_algorithm_goes_by_size_and_precision(amx):
    for sizes, expected in SIZES_OF_LAYERS.items():
        assert chosen(*sizes) == (expected[0] if amx else "native")
        with ops.float32_matmul_precision("strassen"):
            assert chosen(*sizes) == expected[0 if amx else 1]
        with ops.float32_matmul_precision("highest"):
            assert chosen(*sizes) == "native"
    with ops.float32_matmul_precision("medium"):
        assert chosen(2048, 1536, 1536) == ("amx bfloat16" if amx else "avx512 bfloat16")
        assert chosen(2, 1536, 1536) == ("native" if amx else "avx512 bfloat16")
    with ops.float32_matmul_precision("strassen"):
        assert chosen(2048, 1536, 1536, transpose_y=False) == ("amx" if amx else "native")
    with ops.use_native(False):
        assert chosen(2048, 1536, 1536) == "reference"


@pytest.mark.parametrize("name", ["amx", "native"])
def test_without_being_asked_pictures_of_a_batch_are_independent(name):
    if name == "amx" and not features.has("amx"):
        pytest.skip(features.missing("amx"))
    x, weight, bias = operands(2 * 600, 1536, 1536)
    x[:600] = np.nan
    with ops.use_kernels(matmul=name):
        y = ops.linear(*map(paddle.to_tensor, (x, weight, bias))).numpy()
    assert np.isnan(y[:600]).all() and np.isfinite(y[600:]).all()


def test_linear_layers_take_the_fast_way():
    sizes = (2 * 520, 1030, 1024)
    if chosen(*sizes) == "native":
        pytest.skip("this CPU has none")
    x, weight, bias = (paddle.to_tensor(array) for array in operands(*sizes))
    x = x.reshape([2, 520, 1024])
    layer = ops.Linear(1024, 1030)
    layer.weight.set_value(weight)
    layer.bias.set_value(bias)
    with paddle.no_grad():
        for compute in (layer, lambda x: ops.linear_gelu(x, layer)):
            with ops.float32_matmul_precision("highest"):
                usual = compute(x).numpy()
            fast = compute(x).numpy()
            assert fast.shape == (2, 520, 1030) and 0 < error(fast, usual) <= 4e-6


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


# Operands rounded to bfloat16: an operand errs by up to 2^-9; errors of a sum add like noise.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("m, n, k", [(7, 5, 3), (100, 130, 70), (97, 65, 601), (320, 64, 330), (200, 70, 1030)])
def test_medium_precision_rounds_operands_to_bfloat16(m, n, k, bias):
    x, weight, b = operands(m, n, k)
    dy = np.random.default_rng(1).standard_normal((m, n), dtype="float32")
    tensors = [paddle.to_tensor(a, stop_gradient=False) for a in (x, weight)]
    with ops.float32_matmul_precision("medium"):
        y = ops.linear(*tensors, paddle.to_tensor(b) if bias else None)
        (y * paddle.to_tensor(dy)).sum().backward()
        shapes = [(m, n, k), (m, k, n, False, False), (n, k, m, True, False)]
        rounds = [(chosen(*shape), None) in ROUNDED for shape in shapes]
    pairs = [(x, weight.T), (dy, weight), (dy.T, x)]
    pairs = [(to_bf16(p), to_bf16(q)) if r else (p.astype("f8"), q.astype("f8")) for (p, q), r in zip(pairs, rounds)]
    expected = [p @ q for p, q in pairs]
    expected[0] += b if bias else 0
    for ours, reference in zip((y, tensors[0].grad, tensors[1].grad), expected):
        assert error(ours.numpy(), reference) <= 2e-6


def test_operands_are_not_rounded_unless_asked_and_after_the_context():
    x, weight, _ = operands(300, 96, 128)
    x, weight = paddle.to_tensor(x), paddle.to_tensor(weight)
    before = ops.linear(x, weight).numpy()
    with ops.float32_matmul_precision("medium"):
        medium = ops.linear(x, weight).numpy()
    assert error(medium, before) <= 1e-2
    assert np.array_equal(ops.linear(x, weight).numpy(), before)


def test_on_gpus_highest_keeps_float32_from_tf32(monkeypatch):
    allowed = []
    monkeypatch.setattr(paddle_internals.core, "set_cublas_switch", allowed.append, raising=False)
    with ops.float32_matmul_precision("highest"):
        assert allowed.pop() is False
        with ops.float32_matmul_precision("medium"):
            assert allowed.pop() is True
        assert allowed.pop() is False
    assert allowed == [True]


def test_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match=r"'low'.*'highest', 'high', 'strassen', 'medium'"):
        ops.float32_matmul_precision("low")
