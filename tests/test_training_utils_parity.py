"""The same numbers as diffusers' functions."""

import numpy as np
import paddle
import pytest

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("diffusers.training_utils")
optimization = pytest.importorskip("diffusers.optimization")

import ppsd3
from ppsd3 import training_utils as ours
from ppsd3.optimization import get_scheduler

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("scheme", ["logit_normal", "mode", "none"])
def test_times(scheme):
    options = {"logit_mean": 0.3, "logit_std": 0.8, "mode_scale": 1.29}
    mine = ours.compute_density_for_timestep_sampling(scheme, 64, **options, generator=ppsd3.TorchGenerator(5))
    generator = torch.Generator().manual_seed(5)
    other = theirs.compute_density_for_timestep_sampling(scheme, 64, **options, generator=generator)
    np.testing.assert_allclose(mine.numpy(), other.numpy(), atol=1e-6)


@pytest.mark.parametrize("scheme", ["sigma_sqrt", "cosmap", "none"])
def test_weights(scheme):
    sigmas = np.linspace(0.05, 1, 20, dtype="float32")
    mine = ours.compute_loss_weighting_for_sd3(scheme, paddle.to_tensor(sigmas)).numpy()
    np.testing.assert_allclose(mine, theirs.compute_loss_weighting_for_sd3(scheme, torch.tensor(sigmas)), rtol=1e-5)


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts"])
def test_rates(name):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    reference = optimization.get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=20)
    schedule = get_scheduler(name, 0.5, num_warmup_steps=4, num_training_steps=20)
    for _ in range(20):
        assert abs(schedule.get_lr() - optimizer.param_groups[0]["lr"]) < 1e-9
        optimizer.step()
        reference.step()
        schedule.step()


@pytest.mark.parametrize(
    "settings", [{}, {"use_ema_warmup": True, "decay": 0.9}, {"update_after_step": 3, "min_decay": 0.2}]
)
def test_averages_are_those_of_diffusers(settings):
    rng = np.random.default_rng(0)
    start = rng.standard_normal([3, 4]).astype("float32")
    mine, other = paddle.create_parameter([3, 4], "float32"), torch.nn.Parameter(torch.from_numpy(start.copy()))
    mine.set_value(start)
    averages, wanted = ours.EMAModel([mine], **settings), theirs.EMAModel([other], **settings)
    for _ in range(12):
        move = rng.standard_normal([3, 4]).astype("float32")
        mine.set_value(mine.numpy() + move)
        with torch.no_grad():
            other += torch.from_numpy(move)
        averages.step([mine])
        wanted.step([other])
        assert averages.cur_decay_value == pytest.approx(wanted.cur_decay_value)
        np.testing.assert_allclose(averages.shadow_params[0].numpy(), wanted.shadow_params[0].numpy(), atol=1e-6)
