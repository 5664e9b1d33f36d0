"""Bit parity with diffusers' FlowMatchEulerDiscreteScheduler."""

import numpy as np
import paddle
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from ppsd3.schedulers import (
    FlowMatchEulerDiscreteScheduler,
    scheduling_flow_match_euler_discrete as module,
)

pytestmark = pytest.mark.parity

SPACINGS = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
SHIFTS = [
    ({"shift": 1.0}, {}),
    ({"shift": 3.0}, {}),
    ({"shift": 0.7}, {}),
    ({"use_dynamic_shifting": True}, {"mu": 0.8}),
    ({"use_dynamic_shifting": True, "shift": 3.0}, {"mu": 1.15}),
    ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 2.3}),
]
ENDS = [{}, {"shift_terminal": 0.1}, {"invert_sigmas": True}, {"shift_terminal": 0.02, "invert_sigmas": True}]


def pair(**config):
    if config.get("use_beta_sigmas"):
        pytest.importorskip("scipy")
    return FlowMatchEulerDiscreteScheduler(**config), diffusers.FlowMatchEulerDiscreteScheduler(**config)


def assert_same_schedule(ours, theirs):
    for name in ("sigmas", "timesteps"):
        mine, reference = getattr(ours, name), getattr(theirs, name)
        assert mine.dtype == paddle.float32 and reference.dtype == torch.float32
        np.testing.assert_array_equal(mine.numpy(), reference.numpy(), err_msg=name)
    for name in ("sigma_min", "sigma_max", "shift", "step_index", "begin_index", "order"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("num_train_timesteps", [1000, 777, 1])
@pytest.mark.parametrize("shift,_", SHIFTS)
def test_training_table(shift, _, num_train_timesteps):
    assert_same_schedule(*pair(num_train_timesteps=num_train_timesteps, **shift))


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shift,kwargs", SHIFTS)
def test_schedules(shift, kwargs, spacing, ends):
    ours, theirs = pair(**shift, **spacing, **ends)
    steps = (2, 4, 28, 50, 1000) if "use_beta_sigmas" not in spacing else (2, 4, 28)
    for n in (1, *steps) if "shift_terminal" not in ends else steps:  # one step at sigma 1 cannot be stretched
        ours.set_timesteps(n, **kwargs)
        theirs.set_timesteps(n, **kwargs)
        assert_same_schedule(ours, theirs)
        assert ours.num_inference_steps == theirs.num_inference_steps

    sigmas = np.linspace(1.0, 1 / 9, 9).tolist()
    timesteps = [1000.0, 913.7, 500.0, 250.25, 100.0, 50.0, 30.0, 20.0, 1.5]
    for custom in ({"sigmas": sigmas}, {"timesteps": timesteps}, {"sigmas": sigmas, "timesteps": timesteps}):
        for n in (None, 9):
            ours.set_timesteps(n, **custom, **kwargs)
            theirs.set_timesteps(n, **custom, **kwargs)
            assert_same_schedule(ours, theirs)


def test_set_shift():
    ours, theirs = pair(shift=3.0)
    for scheduler in (ours, theirs):
        scheduler.set_shift(1.7)
        scheduler.set_timesteps(28)
    assert_same_schedule(ours, theirs)


def test_time_shift_and_stretch_of_tensors():
    ours, theirs = pair(use_dynamic_shifting=True, shift_terminal=0.1)
    t = np.linspace(1, 0.1, 7, dtype=np.float32)
    mine = ours.stretch_shift_to_terminal(paddle.to_tensor(t))
    np.testing.assert_allclose(mine.numpy(), theirs.stretch_shift_to_terminal(torch.tensor(t)).numpy(), rtol=2e-7)
    mine = ours.time_shift(0.9, 1.0, paddle.to_tensor(t))
    np.testing.assert_allclose(mine.numpy(), theirs.time_shift(0.9, 1.0, torch.tensor(t)).numpy(), rtol=2e-7)


def normals(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


@pytest.mark.parametrize("begin", [None, 0, 3])
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("config", [{"shift": 3.0}, {"invert_sigmas": True}, {"use_karras_sigmas": True}])
def test_step_sequence(config, stochastic, begin, monkeypatch):
    ours, theirs = pair(stochastic_sampling=stochastic, **config)
    reference_module = diffusers.schedulers.scheduling_flow_match_euler_discrete
    noise = iter(normals(40, 2, 16, 5, 7, seed=9).repeat(2, axis=0))  # the two take turns
    monkeypatch.setattr(module, "randn", lambda *_, **__: paddle.to_tensor(next(noise)))
    monkeypatch.setattr(reference_module, "randn_tensor", lambda *_, **__: torch.tensor(next(noise)))
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    if begin is not None:
        ours.set_begin_index(begin)
        theirs.set_begin_index(begin)
    x, y = paddle.to_tensor(normals(2, 16, 5, 7)), torch.tensor(normals(2, 16, 5, 7))
    for i in range(begin or 0, 10):
        velocity = normals(2, 16, 5, 7, seed=i + 1)
        x = ours.step(paddle.to_tensor(velocity), ours.timesteps[i], x).prev_sample
        y = theirs.step(torch.tensor(velocity), theirs.timesteps[i], y).prev_sample
        np.testing.assert_array_equal(x.numpy(), y.numpy())
        assert ours.step_index == theirs.step_index == i + 1


def test_step_with_the_noise_of_one_seed():
    from ppsd3.utils.random import TorchGenerator

    ours, theirs = pair(shift=3.0, stochastic_sampling=True)
    x, y = paddle.to_tensor(normals(2, 16, 8, 8)), torch.tensor(normals(2, 16, 8, 8))
    mine, reference = TorchGenerator(5), torch.Generator().manual_seed(5)
    ours.set_timesteps(4)
    theirs.set_timesteps(4)
    for t, u in zip(ours.timesteps, theirs.timesteps):
        x = ours.step(x * 0.5, t, x, generator=mine, return_dict=False)[0]
        y = theirs.step(y * 0.5, u, y, generator=reference, return_dict=False)[0]
    np.testing.assert_allclose(x.numpy(), y.numpy(), atol=2e-6)


@pytest.mark.parametrize("stochastic", [False, True])
def test_per_token_timesteps(stochastic, monkeypatch):
    ours, theirs = pair(shift=3.0, stochastic_sampling=stochastic)
    reference_module = diffusers.schedulers.scheduling_flow_match_euler_discrete
    noise = normals(2, 6, 4, seed=3)
    monkeypatch.setattr(module, "randn", lambda *_, **__: paddle.to_tensor(noise))
    monkeypatch.setattr(reference_module, "randn_tensor", lambda *_, **__: torch.tensor(noise))
    ours.set_timesteps(8)
    theirs.set_timesteps(8)
    tokens = theirs.timesteps.numpy()[[[0, 1, 2, 3, 4, 7], [5, 5, 5, 0, 0, 0]]] - np.float32(0.25)
    x, v = normals(2, 6, 4), normals(2, 6, 4, seed=2)
    mine = ours.step(
        paddle.to_tensor(v), ours.timesteps[0], paddle.to_tensor(x), per_token_timesteps=paddle.to_tensor(tokens)
    )
    reference = theirs.step(
        torch.tensor(v), theirs.timesteps[0], torch.tensor(x), per_token_timesteps=torch.tensor(tokens)
    )
    np.testing.assert_array_equal(mine.prev_sample.numpy(), reference.prev_sample.numpy())


@pytest.mark.parametrize("position", ["lookup", "begin_index", "after a step"])
def test_scale_noise(position):
    ours, theirs = pair(shift=3.0)
    sample, noise = normals(3, 16, 4, 4), normals(3, 16, 4, 4, seed=1)
    for scheduler, make in ((ours, paddle.to_tensor), (theirs, torch.tensor)):
        scheduler.set_timesteps(10)
        if position != "lookup":
            scheduler.set_begin_index(4)
        if position == "after a step":
            scheduler.step(make(noise), scheduler.timesteps[4], make(sample))
    for rows in ([2, 9, 5], [4]):
        timesteps = ours.timesteps[paddle.to_tensor(rows)]
        mine = ours.scale_noise(paddle.to_tensor(sample), timesteps, paddle.to_tensor(noise))
        reference = theirs.scale_noise(torch.tensor(sample), theirs.timesteps[rows], torch.tensor(noise))
        np.testing.assert_array_equal(mine.numpy(), reference.numpy())


def test_half_types_agree_to_their_rounding():
    """Here the product is float32 too; diffusers rounds it to bfloat16 before the sum."""
    ours, theirs = pair(shift=3.0)
    sample, velocity = normals(2, 16, 8, 8), normals(2, 16, 8, 8, seed=1)
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    mine = ours.step(paddle.to_tensor(velocity).astype("bfloat16"), ours.timesteps[0], paddle.to_tensor(sample))
    reference = theirs.step(torch.tensor(velocity).bfloat16(), theirs.timesteps[0], torch.tensor(sample))
    assert mine.prev_sample.dtype == paddle.bfloat16
    mine, reference = mine.prev_sample.astype("float32").numpy(), reference.prev_sample.float().numpy()
    np.testing.assert_allclose(mine, reference, atol=2e-3, rtol=2**-7)


def test_index_for_timestep_of_repeated_timesteps():
    ours, theirs = pair()
    timesteps = [900.0, 500.1, 500.1, 100.0]
    ours.set_timesteps(timesteps=timesteps)
    theirs.set_timesteps(timesteps=timesteps)
    for t in (900.0, 500.1, 100.0):
        assert ours.index_for_timestep(t) == theirs.index_for_timestep(t)


def test_configs_cross(tmp_path):
    ours, theirs = pair(shift=3.0, use_karras_sigmas=True, shift_terminal=0.1)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "ours")
    here = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "theirs")
    for scheduler in (back, here):
        scheduler.set_timesteps(28)
    assert_same_schedule(here, back)
    assert dict(here.config) == {k: v for k, v in back.config.items() if not k.startswith("_")}
