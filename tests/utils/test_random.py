import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.framework import core

from ppsd3.utils.errors import InputError
from ppsd3.utils.random import TorchGenerator, randn

GOLDEN = np.load(Path(__file__).parent.parent / "data" / "golden_scheduler_noise.npz")
SEEDS, DRAWS = json.loads(str(GOLDEN["seeds"])), json.loads(str(GOLDEN["draws"]))

# float32: torch's vectorised approximations against numpy's. The half types may round such a difference either way.
TOLERANCE = {"float32": 1e-6, "float64": 1e-14, "float16": 2e-3, "bfloat16": 1.6e-2}


def _seeded(seed):
    generator = type(core.default_cpu_generator())()  # paddle.Generator() would be the global one
    generator.manual_seed(seed)
    return generator


@pytest.mark.parametrize("seed", SEEDS)
def test_golden_stream(seed):
    generator = TorchGenerator(seed)
    for i, (shape, dtype) in enumerate(DRAWS):
        values = generator.randn(shape, dtype)
        assert list(values.shape) == shape and str(values.dtype) == dtype.replace("bfloat16", "float32")
        np.testing.assert_allclose(values.astype(np.float64), GOLDEN[f"{seed}_{i}"], rtol=0, atol=TOLERANCE[dtype])
    key = slice(24, 5016)
    np.testing.assert_array_equal(generator.get_state()[key], GOLDEN[f"{seed}_state"][key])
    np.testing.assert_array_equal(generator.get_state()[:16], GOLDEN[f"{seed}_state"][:16])


def test_a_torch_state_is_continued():
    seed = SEEDS[0]
    here, there = TorchGenerator(seed), TorchGenerator(9)
    for shape, dtype in DRAWS:
        here.randn(shape, dtype)
    there.set_state(GOLDEN[f"{seed}_state"])
    for shape, dtype in DRAWS:
        np.testing.assert_array_equal(here.randn(shape, dtype), there.randn(shape, dtype))
    assert there.initial_seed() == seed


@pytest.mark.parametrize("size", [3, 40, 1000])
def test_get_and_set_state(size):
    generator = TorchGenerator(3)
    generator.randn([size])  # 3 leaves a waiting second normal
    state = generator.get_state()
    first = generator.randn([7]), generator.randn([700])
    generator.set_state(state)
    for a, b in zip(first, (generator.randn([7]), generator.randn([700]))):
        np.testing.assert_array_equal(a, b)


def test_seeds():
    assert TorchGenerator(-1).initial_seed() == 2**64 - 1
    low_bits_only = TorchGenerator(2**40 + 5).randn([32]), TorchGenerator(5).randn([32])
    np.testing.assert_array_equal(*low_bits_only)
    generator = TorchGenerator(4)
    first = generator.randn([5])
    assert generator.manual_seed(4) is generator
    np.testing.assert_array_equal(generator.randn([5]), first)
    for seed in (2**64, -(2**63) - 1, 1.5, True, None, "3"):
        with pytest.raises(InputError, match="seed"):
            TorchGenerator(seed)


def test_normals_are_normal():
    values = TorchGenerator(0).randn([1, 16, 128, 128])
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01 and np.isfinite(values).all()


def test_bad_arguments():
    generator = TorchGenerator(0)
    for shape in ([-1, 2], [2.5], 4):
        with pytest.raises(InputError, match="shape"):
            generator.randn(shape)
    for dtype in ("int32", "complex64", None):
        with pytest.raises(InputError, match="dtype"):
            generator.randn([4], dtype)
    for state in (np.zeros(10, np.uint8), np.zeros(5056)):
        with pytest.raises(InputError, match="5056"):
            generator.set_state(state)
    for other in (7, "seed", object()):
        with pytest.raises(InputError, match="TorchGenerator"):
            randn([2, 3], other)


@pytest.mark.parametrize("shape", [[], [0], [2, 0, 3], [1], [2, 3, 5]])
def test_shapes(shape):
    assert list(TorchGenerator(0).randn(shape).shape) == shape
    assert list(randn(shape, TorchGenerator(0)).shape) == shape


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", paddle.bfloat16, paddle.float32])
@pytest.mark.parametrize("make", [lambda: None, lambda: TorchGenerator(1), lambda: _seeded(1)])
def test_dtypes(make, dtype):
    values = randn([2, 16], make(), dtype)
    assert str(values.dtype).split(".")[-1] == str(dtype).split(".")[-1]
    if isinstance(make(), TorchGenerator):
        name = str(dtype).split(".")[-1]
        wide = "float64" if name == "float64" else "float32"
        expected = TorchGenerator(1).randn([2, 16], name).astype(wide)
        np.testing.assert_array_equal(values.astype(wide).numpy(), expected)


def test_none_is_paddles_global_stream():
    paddle.seed(3)
    expected = paddle.randn([2, 4]).numpy()
    paddle.seed(3)
    np.testing.assert_array_equal(randn([2, 4]).numpy(), expected)


def test_a_paddle_generator_advances_and_the_global_one_stays():
    paddle.seed(11)
    expected = [paddle.randn([3]).numpy() for _ in range(3)]
    paddle.seed(5)
    untouched = [paddle.randn([2]).numpy() for _ in range(3)]
    paddle.seed(5)
    generator = _seeded(11)
    for own, other in zip(expected, untouched):
        np.testing.assert_array_equal(randn([3], generator).numpy(), own)
        np.testing.assert_array_equal(paddle.randn([2]).numpy(), other)


def test_the_global_generator_itself_can_be_passed():
    expected = [values.numpy() for values in (paddle.seed(11) and paddle.randn([3]), paddle.randn([3]))]
    generator = paddle.seed(11)
    for values in expected:
        np.testing.assert_array_equal(randn([3], generator).numpy(), values)


def test_one_generator_per_row():
    rows = randn([2, 4, 5], [TorchGenerator(1), _seeded(2)]).numpy()
    np.testing.assert_array_equal(rows[:1], TorchGenerator(1).randn([1, 4, 5]))
    np.testing.assert_array_equal(rows[1:], randn([1, 4, 5], _seeded(2)).numpy())
    bfloat16 = randn([2, 4, 5], [TorchGenerator(1), TorchGenerator(2)], "bfloat16")
    expected = TorchGenerator(2).randn([1, 4, 5], "bfloat16")
    np.testing.assert_array_equal(bfloat16.astype("float32").numpy()[1:], expected)


def test_a_list_of_one_is_that_one():
    np.testing.assert_array_equal(randn([3, 20], [TorchGenerator(1)]).numpy(), TorchGenerator(1).randn([3, 20]))


def test_one_torch_generator_in_several_rows_draws_one_after_another():
    generator, twin = TorchGenerator(1), TorchGenerator(1)
    expected = np.concatenate([twin.randn([1, 20]), twin.randn([1, 20])])
    np.testing.assert_array_equal(randn([2, 20], [generator, generator]).numpy(), expected)


def test_bad_lists():
    for generators in ([], [TorchGenerator(0)] * 3):
        with pytest.raises(InputError, match=f"{len(generators)} generators"):
            randn([2, 4], generators)
    shared = _seeded(0)
    with pytest.raises(InputError, match="several times"):
        randn([2, 4], [shared, shared])


def test_torchs_ways_of_making_one():
    expected = TorchGenerator(7).randn([20])
    for made in (TorchGenerator("cpu"), TorchGenerator(device="cpu"), TorchGenerator()):
        assert made.initial_seed() == 67280421310721 and made.device == "cpu"
        np.testing.assert_array_equal(made.manual_seed(7).randn([20]), expected)
    for device in ("cuda", "gpu:1"):
        with pytest.raises(InputError, match=r"TorchGenerator\('cpu'\).manual_seed"):
            TorchGenerator(device)
        with pytest.raises(InputError, match=r"TorchGenerator\('cpu'\).manual_seed"):
            TorchGenerator(0, device)
    drawn = TorchGenerator(7)
    assert drawn.seed() == drawn.initial_seed() != 7


def test_an_int_is_answered_with_the_generator_of_it():
    with pytest.raises(InputError, match=r"use ppsd3.TorchGenerator\(42\)"):
        randn([2, 3], 42)


def test_one_torch_like_generator_may_draw_several_rows():
    shared = TorchGenerator(1)
    rows, alone = randn([2, 4], [shared, shared]).numpy(), TorchGenerator(1)
    for row in rows:
        np.testing.assert_array_equal(row, alone.randn([4]))


def test_randn_tensor():
    from ppsd3.utils import paddle_utils, randn_tensor, torch_utils

    assert paddle_utils.randn_tensor is torch_utils.randn_tensor is randn_tensor
    made = randn_tensor((2, 3), generator=TorchGenerator(5), device="cpu", dtype="float64")
    assert made.place.is_cpu_place()
    np.testing.assert_array_equal(made.numpy(), randn([2, 3], TorchGenerator(5), "float64").numpy())
    assert randn_tensor([2]).dtype == randn([2]).dtype


def test_threads_do_not_mix_the_streams_of_generators():
    """The states of generators pass through Paddle's global one, which others draw from meanwhile."""

    def draws(generator):
        return [randn([64], generator).numpy() for _ in range(200)]

    paddle.seed(1)
    expected = [draws(_seeded(seed)) for seed in (3, 4)] + [draws(None)]
    paddle.seed(1)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(draws, [_seeded(3), _seeded(4), None]))
    np.testing.assert_array_equal(found, expected)
