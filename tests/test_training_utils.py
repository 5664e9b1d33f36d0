"""Parts of a training loop under diffusers' names."""

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3 import LoraConfig, SD3Transformer2DModel, TorchGenerator
from ppsd3.optimization import get_scheduler
from ppsd3.training_utils import (
    EMAModel,
    cast_training_params,
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
    set_seed,
)
from ppsd3.utils.errors import InputError


@pytest.mark.parametrize("scheme", ["logit_normal", "mode", "none"])
def test_times(scheme):
    set_seed(3)
    first = compute_density_for_timestep_sampling(scheme, 4000, logit_mean=0.0, logit_std=1.0, mode_scale=1.29)
    set_seed(3)
    again = compute_density_for_timestep_sampling(scheme, 4000, logit_mean=0.0, logit_std=1.0, mode_scale=1.29)
    assert np.array_equal(first.numpy(), again.numpy())
    assert first.shape == [4000] and 0 <= float(first.min()) and float(first.max()) <= 1
    spread = {"logit_normal": 0.208, "mode": 0.227, "none": 0.289}[scheme]  # by integrating the densities
    assert abs(float(first.mean()) - 0.5) < 0.02 and abs(float(first.std()) - spread) < 0.02


def test_what_cannot_draw_times():
    for options in ({"device": "gpu"}, {"generator": paddle.seed(1)}):
        with pytest.raises(InputError):
            compute_density_for_timestep_sampling("mode", 4, **options)


def test_weights():
    sigmas = paddle.to_tensor([0.25, 0.5])
    np.testing.assert_allclose(compute_loss_weighting_for_sd3("sigma_sqrt", sigmas).numpy(), [16.0, 4.0])
    expected = [2 / (np.pi * (1 - 2 * s + 2 * s * s)) for s in (0.25, 0.5)]
    np.testing.assert_allclose(compute_loss_weighting_for_sd3("cosmap", sigmas).numpy(), expected, rtol=1e-6)
    assert compute_loss_weighting_for_sd3("none", sigmas).tolist() == [1.0, 1.0]


def test_what_is_trained_is_cast():
    transformer = tiny.make_pipeline().transformer.to(dtype="float16")
    transformer.add_adapter(LoraConfig(r=2))
    cast_training_params([transformer], dtype="float32")
    for name, parameter in transformer.named_parameters():
        wanted = paddle.float16 if parameter.stop_gradient else paddle.float32
        assert parameter.dtype == wanted, name


NAMES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


def rates(name, **options):
    schedule, seen = get_scheduler(name, 0.5, num_warmup_steps=4, num_training_steps=20, **options), []
    for _ in range(21):
        seen.append(schedule.get_lr())
        schedule.step()
    return np.array(seen)


@pytest.mark.parametrize("name", NAMES)
def test_rates(name):
    seen = rates(name, power=2.0) / 0.5
    assert seen[4] == 1.0
    if name == "constant":
        assert (seen == 1.0).all()
        return
    np.testing.assert_allclose(seen[:5], np.arange(5) / 4)
    end = {"constant_with_warmup": [1.0, 1.0], "polynomial": [0.25, 0.0]}.get(name, [0.5, 0.0])
    np.testing.assert_allclose(seen[[12, 20]], end, atol=1e-12)


def test_an_optimizer_takes_the_schedule():
    parameter = paddle.create_parameter([1], "float32")
    optimizer = paddle.optimizer.SGD(0.1, parameters=[parameter])
    schedule = get_scheduler("linear", optimizer=optimizer, num_warmup_steps=2, num_training_steps=4)
    assert optimizer.get_lr() == 0.0
    schedule.step()
    assert abs(optimizer.get_lr() - 0.05) < 1e-9


def test_refusals():
    for arguments, message in (
        ({"name": "step"}, "constant_with_warmup"),
        ({"name": "linear"}, "num_training_steps"),
        ({"name": "linear", "num_training_steps": 3, "learning_rate": None}, "optimizer"),
    ):
        with pytest.raises(InputError, match=message):
            get_scheduler(**{"learning_rate": 0.1, **arguments})


def test_logit_normal_takes_every_generator():
    ours = compute_density_for_timestep_sampling("logit_normal", 32, generator=TorchGenerator(2)).numpy()
    np.testing.assert_allclose(ours, 1 / (1 + np.exp(-TorchGenerator(2).randn([32]))), atol=1e-6)
    assert compute_density_for_timestep_sampling("logit_normal", 4, generator=paddle.seed(2)).shape == [4]


def test_averages_are_copied_taken_back_and_saved(tmp_path):
    net = SD3Transformer2DModel(**tiny.TRANSFORMER)
    averages = EMAModel(net.parameters(), model_cls=type(net), model_config=net.config, decay=0.5)
    before = [p.numpy().copy() for p in net.parameters()]
    for parameter in net.parameters():
        parameter.set_value(parameter + 1)
    averages.step(net.parameters())  # the first step follows at once
    averages.store(net.parameters())
    for parameter in net.parameters():
        parameter.set_value(parameter * 0)
    averages.copy_to(net.parameters())
    assert all(np.abs(p.numpy() - b - 1).max() < 1e-5 for p, b in zip(net.parameters(), before))
    averages.restore(net.parameters())
    with pytest.raises(InputError, match=r"restore\(\) has nothing"):
        averages.restore(net.parameters())
    averages.save_pretrained(tmp_path)
    again = EMAModel.from_pretrained(tmp_path, type(net))
    assert (again.optimization_step, again.decay) == (1, 0.5)
    for one, other in zip(again.shadow_params, averages.shadow_params):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_averages_of_bfloat16_move():
    parameter = paddle.ones([4]).astype("bfloat16")
    parameter.stop_gradient = False
    averages = EMAModel([parameter], decay=0.9999)
    averages.optimization_step = 10**6
    parameter.set_value(paddle.full([4], 2.0).astype("bfloat16"))
    averages.step([parameter])
    np.testing.assert_allclose(averages.shadow_params[0].numpy(), 1.0001, rtol=1e-6)


def test_wrong_states_and_parameters_of_averages():
    averages = EMAModel([paddle.ones([4])])
    with pytest.raises(InputError, match="1 averages"):
        averages.step([paddle.ones([3])])
    with pytest.raises(InputError, match="no 'decay'"):
        averages.load_state_dict({})
    with pytest.raises(InputError, match="model_cls"):
        averages.save_pretrained("nowhere")
