"""The other samplers against diffusers': schedules, single runs with random velocities, and whole pictures."""

import numpy as np
import paddle
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from helpers import reference

import ppsd3

pytestmark = pytest.mark.parity

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
CASES = {
    "Heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "Heun, unshifted": ("FlowMatchHeunDiscreteScheduler", {}),
    "LCM": ("FlowMatchLCMScheduler", {"shift": 3.0}),
    "LCM, Karras": ("FlowMatchLCMScheduler", {"shift": 3.0, "use_karras_sigmas": True}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {**FLOW, "flow_shift": 3.0}),
    "DPM++ 2M, Heun": ("DPMSolverMultistepScheduler", {**FLOW, "flow_shift": 3.0, "solver_type": "heun"}),
    "DPM++ 1": ("DPMSolverMultistepScheduler", {**FLOW, "solver_order": 1}),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {**FLOW, "flow_shift": 2.0, "solver_order": 3}),
    "DPM++ dynamic": ("DPMSolverMultistepScheduler", {**FLOW, "use_dynamic_shifting": True}),
    "SDE 2M": ("DPMSolverMultistepScheduler", {**FLOW, "flow_shift": 3.0, "algorithm_type": "sde-dpmsolver++"}),
    "SDE 2M, Heun": (
        "DPMSolverMultistepScheduler",
        {**FLOW, "flow_shift": 3.0, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    ),
    "SDE 1": (
        "DPMSolverMultistepScheduler",
        {**FLOW, "flow_shift": 3.0, "algorithm_type": "sde-dpmsolver++", "solver_order": 1},
    ),
    "UniPC": ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0}),
    "UniPC, bh1": ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0, "solver_type": "bh1"}),
    "UniPC 1": ("UniPCMultistepScheduler", {**FLOW, "solver_order": 1}),
    "UniPC 3": ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0, "solver_order": 3}),
    "UniPC, no corrector": ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0, "disable_corrector": [0, 2]}),
    "UniPC, terminal": ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0, "shift_terminal": 0.1}),
    "UniPC dynamic": ("UniPCMultistepScheduler", {**FLOW, "use_dynamic_shifting": True}),
}


def pair(name):
    class_name, config = CASES[name]
    return getattr(ppsd3, class_name)(**config), getattr(diffusers, class_name)(**config)


def options(scheduler):
    return {"mu": 0.9} if scheduler.config.get("use_dynamic_shifting", False) else {}


@pytest.mark.parametrize("steps", [1, 4, 12, 20, 28])
@pytest.mark.parametrize("name", CASES)
def test_schedule(name, steps):
    if steps == 1 and "terminal" in name:
        steps = 2  # one step at sigma 1 cannot be stretched
    ours, theirs = pair(name)
    ours.set_timesteps(steps, **options(ours))
    theirs.set_timesteps(steps, **options(ours))
    np.testing.assert_array_equal(ours.sigmas.numpy(), theirs.sigmas.numpy())
    np.testing.assert_array_equal(ours.timesteps.numpy(), theirs.timesteps.numpy().astype("float32"))
    assert ours.order == theirs.order


def velocity(x, timestep):
    """Something smooth in both arguments."""
    return np.sin(3 * x + float(timestep) / 300).astype("float32")


@pytest.mark.parametrize("begin", [0, 3])
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("name", CASES)
def test_run(name, steps, begin):
    ours, theirs = pair(name)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps, **options(ours))
        scheduler.set_begin_index(begin * scheduler.order)
    x = y = np.random.RandomState(0).randn(2, 4, 6, 6).astype("float32")
    mine, other = ppsd3.TorchGenerator(5), torch.Generator().manual_seed(5)
    draws = {} if name.startswith(("UniPC", "DPM")) else None
    for t, s in zip(ours.timesteps[begin * ours.order :], theirs.timesteps[begin * theirs.order :]):
        first = {"generator": mine} if draws is None else draws
        second = {"generator": other} if draws is None else draws
        x = ours.step(paddle.to_tensor(velocity(x, t)), t, paddle.to_tensor(x), **first).prev_sample.numpy()
        y = theirs.step(torch.from_numpy(velocity(y, s)), s, torch.from_numpy(y), **second).prev_sample.numpy()
        if name == "UniPC, bh1" and not np.isfinite(y).all():  # diffusers' last step to 0 multiplies 0 by infinity
            assert np.isfinite(x).all() and t == ours.timesteps[-1]
        else:
            assert np.abs(x - y).max() <= 1e-5 * max(1.0, np.abs(y).max())


def test_lcm_that_grows():
    config = {"shift": 3.0, "scale_factors": [1.5, 2.0, 2.0]}
    ours, theirs = ppsd3.FlowMatchLCMScheduler(**config), diffusers.FlowMatchLCMScheduler(**config)
    ours.set_timesteps(4)
    theirs.set_timesteps(4)
    x = y = np.random.RandomState(0).randn(1, 4, 8, 8).astype("float32")
    mine, other = ppsd3.TorchGenerator(5), torch.Generator().manual_seed(5)
    for t, s in zip(ours.timesteps, theirs.timesteps):
        x = ours.step(paddle.to_tensor(velocity(x, t)), t, paddle.to_tensor(x), generator=mine).prev_sample.numpy()
        y = theirs.step(torch.from_numpy(velocity(y, s)), s, torch.from_numpy(y), generator=other).prev_sample.numpy()
        assert x.shape == y.shape and np.abs(x - y).max() <= 1e-5 * np.abs(y).max()
    assert x.shape == (1, 4, 16, 16)


def test_heun_with_churn():
    ours, theirs = pair("Heun")
    x = y = np.random.RandomState(0).randn(1, 4, 8, 8).astype("float32")
    mine, other = ppsd3.TorchGenerator(5), torch.Generator().manual_seed(5)
    ours.set_timesteps(6)
    theirs.set_timesteps(6)
    for t, s in zip(ours.timesteps, theirs.timesteps):
        churn = {"s_churn": 2.0, "s_tmax": 0.9, "s_noise": 1.1} if ours.state_in_first_order else {}
        x = ours.step(paddle.to_tensor(velocity(x, t)), t, paddle.to_tensor(x), generator=mine, **churn)
        y = theirs.step(torch.from_numpy(velocity(y, s)), s, torch.from_numpy(y), generator=other, **churn)
        x, y = x.prev_sample.numpy(), y.prev_sample.numpy()
        assert np.abs(x - y).max() <= 2e-5 * np.abs(y).max()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return reference.write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("name", ["Heun", "DPM++ 2M", "DPM++ 3M", "UniPC", "UniPC 3", "LCM", "SDE 2M"])
def test_same_picture(checkpoint, name):
    ours = ppsd3.StableDiffusion3Pipeline.from_pretrained(checkpoint)
    theirs = reference.load(checkpoint)
    ours.scheduler, theirs.scheduler = pair(name)
    ours.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 8, "output_type": "np"}
    noise = reference.generator(3)
    if name in ("LCM", "SDE 2M"):  # diffusers' pipeline does not hand its generator on
        step = theirs.scheduler.step
        theirs.scheduler.step = lambda *a, **o: step(*a, **o, generator=noise)
    other = theirs("a red circle", generator=noise, **settings).images
    mine = ours("a red circle", generator=ppsd3.TorchGenerator(3), **settings).images
    assert other.std() > 0.08
    assert np.abs(np.round(mine * 255) - np.round(other * 255)).max() <= 1


def test_what_we_save_diffusers_draws(checkpoint, tmp_path):
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(checkpoint)
    pipe.scheduler = ppsd3.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.config.flow_shift == 3.0
    pipe.save_pretrained(tmp_path)
    theirs = reference.load(tmp_path)
    assert type(theirs.scheduler) is diffusers.DPMSolverMultistepScheduler
    settings = {"num_inference_steps": 6, "output_type": "np"}
    other = theirs("a red circle", generator=reference.generator(3), **settings).images
    again = ppsd3.DiffusionPipeline.from_pretrained(tmp_path)
    mine = again("a red circle", generator=ppsd3.TorchGenerator(3), **settings).images
    assert np.abs(np.round(mine * 255) - np.round(other * 255)).max() <= 1
