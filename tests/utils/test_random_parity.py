"""TorchGenerator against torch itself."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ppsd3.utils.random import TorchGenerator, randn

pytestmark = pytest.mark.parity

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
SIZES = [0, 1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 47, 64, 312, 624, 1000]


def assert_close(mine, reference, dtype):
    mine, reference = mine.astype(np.float64), reference.double().numpy()
    if dtype in ("float16", "bfloat16"):  # a float32 difference may fall on either side of a rounding boundary
        np.testing.assert_allclose(mine, reference, atol=5e-7, rtol={"float16": 2**-10, "bfloat16": 2**-7}[dtype])
    else:
        np.testing.assert_allclose(mine, reference, rtol=0, atol={"float32": 5e-7, "float64": 1e-14}[dtype])


@pytest.mark.parametrize("seed", [0, 1, 42, -1, -(2**63), 2**63, 2**64 - 1, 2**40 + 5])
def test_mixed_sizes_and_dtypes_keep_in_step(seed):
    theirs, ours = torch.Generator("cpu").manual_seed(seed), TorchGenerator(seed)
    assert ours.initial_seed() == theirs.initial_seed()
    choice = np.random.RandomState(0)
    for _ in range(200):
        size, dtype = int(choice.choice(SIZES)), str(choice.choice(list(DTYPES)))
        assert_close(ours.randn([size], dtype), torch.randn(size, generator=theirs, dtype=DTYPES[dtype]), dtype)
        state, reference = ours.get_state(), theirs.get_state().numpy()
        state[16:24] = reference[16:24]  # `next`: torch ignores it where `left` is 1, and there we write 0
        np.testing.assert_array_equal(state, reference)


def test_large_draw():
    shape = [2, 16, 128, 128]
    mine = randn(shape, TorchGenerator(123)).numpy()
    assert_close(mine, torch.randn(shape, generator=torch.Generator().manual_seed(123)), "float32")


@pytest.mark.parametrize("size", [3, 40, 609, 624, 1000])
def test_states_cross(size):
    ours, theirs = TorchGenerator(8), torch.Generator()
    ours.randn([size])
    theirs.set_state(torch.from_numpy(ours.get_state()))
    back = TorchGenerator(0)
    back.set_state(theirs.get_state().numpy())
    expected = torch.randn(777, generator=theirs)
    assert_close(ours.randn([777]), expected, "float32")
    assert_close(back.randn([777]), expected, "float32")


def test_lists_as_in_diffusers():
    randn_tensor = pytest.importorskip("diffusers.utils.torch_utils").randn_tensor
    for seeds, shape in (([1, 2, 3], (3, 4, 5)), ([7], (3, 4, 5)), ([1, 2], (2, 3))):
        theirs = randn_tensor(shape, generator=[torch.Generator().manual_seed(s) for s in seeds])
        ours = randn(shape, [TorchGenerator(s) for s in seeds])
        assert_close(ours.numpy(), theirs, "float32")


@pytest.mark.parametrize("shape", [(3,), (17,), (2, 16, 8, 8)])
def test_torchs_own_generator_moves_on_as_if_torch_had_drawn(shape):
    """Also between draws of torch's, and in lists."""
    ours, theirs = (torch.Generator("cpu").manual_seed(7) for _ in range(2))
    for _ in range(2):
        assert_close(randn(shape, ours).numpy(), torch.randn(shape, generator=theirs), "float32")
        assert_close(torch.randn(5, generator=ours).numpy(), torch.randn(5, generator=theirs), "float32")
    assert torch.equal(ours.get_state(), theirs.get_state())
    rows = randn([2, *shape], [torch.Generator().manual_seed(seed) for seed in (1, 2)]).numpy()
    for seed, row in zip((1, 2), rows):
        assert_close(row, torch.randn(shape, generator=torch.Generator().manual_seed(seed)), "float32")


def test_uniform_numbers():
    ours, theirs = TorchGenerator(7), torch.Generator().manual_seed(7)
    for size in (1, 5, 40):
        np.testing.assert_array_equal(ours.rand([size]), torch.rand(size, generator=theirs).numpy())
    assert TorchGenerator().initial_seed() == torch.Generator().initial_seed()
