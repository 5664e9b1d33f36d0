import copy
import json
import logging
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppsd3.schedulers import FlowMatchEulerDiscreteScheduler, SchedulerOutput, flow_sigmas
from ppsd3.utils.errors import CheckpointNotFoundError, ConfigError, InputError
from ppsd3.utils.random import TorchGenerator, randn

GOLDEN = np.load(Path(__file__).parent.parent / "data" / "golden_scheduler.npz")
CASES = json.loads(str(GOLDEN["cases"]))


def scheduler_of(num_inference_steps=None, **config):
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    if num_inference_steps:
        scheduler.set_timesteps(num_inference_steps)
    return scheduler


def normals(*shape, seed=0):
    return paddle.to_tensor(np.random.RandomState(seed).randn(*shape).astype(np.float32))


@pytest.mark.parametrize("index", range(len(CASES)))
def test_golden_schedules(index):
    config, kwargs = CASES[index]
    if "use_beta_sigmas" in config:
        pytest.importorskip("scipy")
    scheduler = scheduler_of(**config)
    scheduler.set_timesteps(**kwargs)
    # exp and powers come from the machine's math library, which may round their last float64 bit differently.
    inexact = any("use_" in key for key in config)
    for name in ("sigmas", "timesteps"):
        values = getattr(scheduler, name)
        assert values.dtype == paddle.float32 and values.place.is_cpu_place()
        np.testing.assert_array_max_ulp(values.numpy(), GOLDEN[f"{name}_{index}"], maxulp=1 if inexact else 0)


def test_shift_is_applied_twice():
    scheduler = scheduler_of(28, shift=3.0)
    assert scheduler.timesteps[1].item() == pytest.approx(987.381, abs=1e-3)
    assert scheduler.timesteps[-1].item() == pytest.approx(8.92857, abs=1e-5)
    assert scheduler.sigmas[-1].item() == 0.0


def test_before_set_timesteps_it_holds_the_training_table():
    scheduler = scheduler_of(shift=3.0)
    assert scheduler.sigmas.shape == scheduler.timesteps.shape == [1000]
    assert len(scheduler) == 1000 and scheduler.order == 1 and scheduler.num_inference_steps is None
    assert scheduler.sigma_max == 1.0 and scheduler.sigma_min == scheduler.sigmas[-1].item()


def test_dynamic_shifts_are_the_static_one_in_other_words():
    sigmas = np.linspace(1, 0.1, 10)
    expected = flow_sigmas.shift_sigmas(sigmas, 3.0)
    np.testing.assert_allclose(flow_sigmas.time_shift_linear(3.0, 1.0, sigmas), expected, rtol=1e-14)
    np.testing.assert_allclose(flow_sigmas.time_shift_exponential(np.log(3.0), 1.0, sigmas), expected, rtol=1e-14)


def test_a_sigma_of_zero_is_shifted_without_a_warning(recwarn):
    scheduler = scheduler_of(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.0], mu=0.5)
    assert scheduler.sigmas[2].item() == 0.0 and not recwarn.list


def test_terminal_and_spacing_keep_their_ends():
    assert scheduler_of(10, shift=3.0, shift_terminal=0.1).sigmas[-2].item() == pytest.approx(0.1, abs=1e-7)
    plain = scheduler_of(10, shift=3.0).sigmas.numpy()
    for spacing in ("use_karras_sigmas", "use_exponential_sigmas"):
        np.testing.assert_allclose(
            scheduler_of(10, shift=3.0, **{spacing: True}).sigmas.numpy()[[0, -2, -1]], plain[[0, -2, -1]], rtol=1e-6
        )


def test_straight_flow_reaches_the_picture_in_any_number_of_steps():
    picture, noise = normals(2, 16, 4, 4), normals(2, 16, 4, 4, seed=1)
    for n in (1, 7):
        scheduler, x = scheduler_of(n, shift=3.0), noise
        for t in scheduler.timesteps:
            x = scheduler.step(noise - picture, t, x).prev_sample
        np.testing.assert_allclose(x.numpy(), picture.numpy(), atol=1e-5)


def test_stochastic_sampling_with_the_true_velocity_ends_at_the_picture_and_obeys_the_seed():
    picture, results = normals(2, 16, 4, 4), []
    for seed in (1, 1, 2):
        scheduler, generator = scheduler_of(5, stochastic_sampling=True), TorchGenerator(seed)
        x, middle = randn(picture.shape, generator), None
        for i, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[i]
            x = scheduler.step((x - picture) / sigma, t, x, generator=generator).prev_sample
            middle = x if i == 2 else middle
        np.testing.assert_allclose(x.numpy(), picture.numpy(), atol=1e-5)
        results.append(middle.numpy())
    assert (results[0] == results[1]).all() and not (results[0] == results[2]).all()


def test_step_returns_the_models_dtype_computed_in_float32():
    scheduler = scheduler_of(4)
    sample, velocity = normals(1, 16, 4, 4), normals(1, 16, 4, 4, seed=1).astype("bfloat16")
    out = scheduler.step(velocity, scheduler.timesteps[0], sample)
    assert isinstance(out, SchedulerOutput) and out.prev_sample.dtype == paddle.bfloat16
    dt = float(scheduler.sigmas[1] - scheduler.sigmas[0])
    expected = (sample + dt * velocity.astype("float32")).astype("bfloat16")
    assert (out.prev_sample.astype("float32").numpy() == expected.astype("float32").numpy()).all()
    second = scheduler.step(velocity, scheduler.timesteps[1], sample, return_dict=False)
    assert isinstance(second, tuple) and len(second) == 1 and scheduler.step_index == 2


def test_position():
    scheduler = scheduler_of(4, shift=3.0)
    x = normals(1, 4)
    assert scheduler.step_index is None and scheduler.begin_index is None
    scheduler.step(x, scheduler.timesteps[2], x)
    assert scheduler.step_index == 3
    scheduler.step(x, scheduler.timesteps[0], x)  # only the first timestep is looked up
    assert scheduler.step_index == 4
    with pytest.raises(InputError, match="all are done"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(1)
    scheduler.step(x, scheduler.timesteps[3], x)
    assert scheduler.begin_index == 1 and scheduler.step_index == 2


def test_index_for_timestep():
    scheduler = scheduler_of()
    scheduler.set_timesteps(timesteps=[900.0, 500.1, 500.1, 100.0])
    assert [scheduler.index_for_timestep(t) for t in (900.0, 500.1, paddle.to_tensor(100.0))] == [0, 2, 3]
    assert scheduler.index_for_timestep(3.0, schedule_timesteps=paddle.to_tensor([5.0, 3.0])) == 1
    with pytest.raises(InputError, match=r"899.0 is not in the schedule; the nearest one is 900.0"):
        scheduler.index_for_timestep(899.0)


def test_scale_noise_uses_a_sigma_for_each_row():
    scheduler, sample, noise = scheduler_of(10, shift=3.0), normals(3, 2, 4, 4), normals(3, 2, 4, 4, seed=1)
    sigmas = scheduler.sigmas.numpy()[[2, 9, 5]].reshape(3, 1, 1, 1)
    out = scheduler.scale_noise(sample, scheduler.timesteps[paddle.to_tensor([2, 9, 5])], noise)
    np.testing.assert_allclose(out.numpy(), sigmas * noise.numpy() + (1 - sigmas) * sample.numpy(), rtol=1e-6)
    one = scheduler.scale_noise(sample, scheduler.timesteps[5], noise)
    np.testing.assert_array_equal(one.numpy()[2], out.numpy()[2])
    scheduler.set_begin_index(5)
    np.testing.assert_array_equal(scheduler.scale_noise(sample, 1.0, noise).numpy(), one.numpy())
    half = scheduler.scale_noise(sample.astype("float16"), 1.0, noise.astype("float16"))
    assert half.dtype == paddle.float16
    np.testing.assert_allclose(half.astype("float32").numpy(), one.numpy(), atol=4e-3)
    with pytest.raises(InputError, match="2 timesteps for 3 samples"):
        scheduler.scale_noise(sample, scheduler.timesteps[:2], noise)
    with pytest.raises(InputError, match="needs noise="):
        scheduler.scale_noise(sample, scheduler.timesteps[:1])


@pytest.mark.parametrize("timestep", [3, np.int64(3), paddle.to_tensor(3), paddle.to_tensor(3, dtype="int32")])
def test_integer_timesteps_are_refused(timestep):
    with pytest.raises(InputError, match=r"entry of scheduler.timesteps"):
        scheduler_of(4).step(normals(1, 4), timestep, normals(1, 4))


@pytest.mark.parametrize("churn", [{"s_churn": 0.1}, {"s_tmin": 1.0}, {"s_tmax": 5.0}, {"s_noise": 1.1}])
def test_churn_is_refused(churn):
    scheduler = scheduler_of(4)
    with pytest.raises(InputError, match="no effect"):
        scheduler.step(normals(1, 4), scheduler.timesteps[0], normals(1, 4), **churn)


@pytest.mark.parametrize(
    "config,kwargs,message",
    [
        ({}, {}, "needs num_inference_steps"),
        ({}, {"num_inference_steps": 0}, "from 1 to 10000"),
        ({}, {"sigmas": []}, "at least 1"),
        ({}, {"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, "num_inference_steps 3, sigmas 2"),
        ({}, {"sigmas": [1.0, 0.5], "timesteps": [1000.0]}, "sigmas 2, timesteps 1"),
        ({}, {"num_inference_steps": 3, "mu": 1.0}, "would change nothing"),
        ({"use_dynamic_shifting": True}, {"num_inference_steps": 3}, "mu="),
        ({"use_exponential_sigmas": True}, {"sigmas": [1.0, 0.0]}, "above 0"),
        ({"shift_terminal": 0.1}, {"num_inference_steps": 1}, "cannot be stretched"),
    ],
)
def test_bad_schedules(config, kwargs, message):
    scheduler = scheduler_of(**config)
    before = scheduler.timesteps.numpy()
    with pytest.raises(InputError, match=message):
        scheduler.set_timesteps(**kwargs)
    assert scheduler.num_inference_steps is None and (scheduler.timesteps.numpy() == before).all()


@pytest.mark.parametrize(
    "config,message",
    [
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "exclude"),
        ({"time_shift_type": "cubic"}, "'exponential', 'linear'"),
        ({"num_train_timesteps": 0}, "from 1 to"),
        ({"shift": 0.0}, "from 0.0001 to"),
        ({"shift_terminal": 1.0}, "between 0 and 1"),
    ],
)
def test_bad_configurations(config, message):
    with pytest.raises(ConfigError, match=message):
        FlowMatchEulerDiscreteScheduler(**config)


def test_beta_sigmas_without_scipy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install scipy"):
        FlowMatchEulerDiscreteScheduler(use_beta_sigmas=True)


def test_timesteps_alone_warn(caplog):
    with caplog.at_level(logging.WARNING, "ppsd3"):
        scheduler_of(shift=3.0).set_timesteps(timesteps=[1000.0, 500.0])
    assert "without sigmas" in caplog.text


def test_published_config_round_trip(tmp_path):
    published = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.29.0.dev0",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": False,
    }
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(published))
    loaded = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert loaded.shift == 3.0 and loaded.config.max_shift == 1.15
    loaded.save_pretrained(tmp_path / "again")
    again = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "again", use_karras_sigmas=True)
    assert dict(again.config) == {**loaded.config, "use_karras_sigmas": True}
    assert dict(FlowMatchEulerDiscreteScheduler.from_config(loaded.config).config) == dict(loaded.config)
    assert loaded.compatibles == [FlowMatchEulerDiscreteScheduler]


def test_loading_errors(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="scheduler does not exist"):
        FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    with pytest.raises(ConfigError, match="Did you mean 'shift'"):
        FlowMatchEulerDiscreteScheduler.from_config({"shfit": 3.0})


def test_set_shift_and_device_and_copy():
    scheduler = scheduler_of(shift=3.0)
    scheduler.set_shift(1.0)
    scheduler.set_timesteps(5, device="cpu")
    twin = copy.deepcopy(scheduler)
    scheduler.set_timesteps(9)
    assert twin.timesteps.shape == [5] and twin.shift == 1.0 and twin.config.shift == 3.0
    twin.step(normals(1, 4), twin.timesteps[0], normals(1, 4))
    assert twin.step_index == 1 and scheduler.step_index is None


def test_per_token_timesteps_step_to_the_next_lower_sigma():
    scheduler = scheduler_of(4)
    sigmas = scheduler.sigmas.numpy()
    tokens = paddle.to_tensor(np.array([[1000.0, 600.0, 10.0]], np.float32))
    x, v = normals(1, 3, 2), normals(1, 3, 2, seed=1)
    out = scheduler.step(v, scheduler.timesteps[0], x, per_token_timesteps=tokens).prev_sample
    now = np.array([1.0, 0.6, 0.01], np.float32)
    lower = np.array([max(s for s in sigmas if s < t - 1e-6) for t in now])
    np.testing.assert_allclose(out.numpy(), x.numpy() + (now - lower)[None, :, None] * v.numpy(), rtol=1e-5)
