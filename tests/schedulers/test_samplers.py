"""The other samplers: how fast they converge, that every task takes them, and what they make of configurations."""

import numpy as np
import paddle
import pytest
from helpers import tiny

import ppsd3
from ppsd3 import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from ppsd3.cli.options import SCHEDULERS, make_scheduler
from ppsd3.utils.errors import ConfigError, InputError

DETERMINISTIC = {
    "euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "heun": FlowMatchHeunDiscreteScheduler(shift=3.0),
    "dpm": DPMSolverMultistepScheduler(flow_shift=3.0),
    "dpm 3": DPMSolverMultistepScheduler(flow_shift=3.0, solver_order=3),
    "unipc": UniPCMultistepScheduler(flow_shift=3.0),
    "unipc 3": UniPCMultistepScheduler(flow_shift=3.0, solver_order=3),
}
MEAN, SPREAD = 2.0, 0.5


def sample(scheduler, steps, noise, **options):
    """The flow to a normal distribution with MEAN and SPREAD, whose velocity is known: x = MEAN + SPREAD noise."""
    scheduler.set_timesteps(steps)
    x = paddle.to_tensor(noise)
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i])
        variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
        centred = x - (1 - sigma) * MEAN
        velocity = centred * ((sigma - (1 - sigma) * SPREAD**2) / variance) - MEAN
        x = scheduler.step(velocity, t, x, **options).prev_sample
    return x.numpy()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_converges_to_the_flow(name):
    noise = np.linspace(-2, 2, 33, dtype="float32").reshape(1, 1, 1, 33)
    exact = MEAN + SPREAD * noise
    errors = [np.abs(sample(DETERMINISTIC[name], n, noise) - exact).max() for n in (25, 100)]
    assert errors[1] < 0.04 and errors[1] < errors[0]


def test_higher_orders_are_nearer():
    noise = np.linspace(-2, 2, 33, dtype="float32").reshape(1, 1, 1, 33)
    exact = MEAN + SPREAD * noise
    error = {name: np.abs(sample(made, 12, noise) - exact).mean() for name, made in DETERMINISTIC.items()}
    assert max(error["dpm"], error["unipc"], error["heun"]) < 0.8 * error["euler"]


@pytest.mark.parametrize("algorithm_type,rate", [("dpmsolver++", 1), ("sde-dpmsolver++", 2)])
def test_third_order_is_nearer_than_second_for_pictures_that_bend(algorithm_type, rate):
    """The solution is ``x_t = keep x_s + alpha_t rate int_0^h e^(-rate (h - s)) x_0(s) ds``, noise apart."""

    def picture(lam):
        return 0.3 - 0.5 * lam + 0.8 * lam**2

    errors = []
    for order in (2, 3):
        scheduler = DPMSolverMultistepScheduler(solver_order=order, algorithm_type=algorithm_type)
        scheduler.set_timesteps(sigmas=[0.8, 0.7, 0.55, 0.4, 0.2])
        sigmas = scheduler.sigmas.numpy().astype("float64")[:4]
        lambdas = np.log(1 - sigmas) - np.log(sigmas)
        x, nothing = paddle.ones([1, 1]), paddle.zeros([1, 1])
        for i in range(3):
            before, velocity = x.item(), (x - float(picture(lambdas[i]))) / float(sigmas[i])
            x = scheduler.step(velocity, scheduler.timesteps[i], x, variance_noise=nothing).prev_sample
        h = lambdas[3] - lambdas[2]
        s = (np.arange(10000) + 0.5) / 10000 * h
        integral = (rate * np.exp(-rate * (h - s)) * picture(lambdas[2] + s)).mean() * h
        keep = sigmas[3] / sigmas[2] * np.exp(-h * (rate - 1))
        errors.append(abs(x.item() - keep * before - (1 - sigmas[3]) * integral))
    assert errors[0] > 2 * errors[1]


@pytest.mark.parametrize(
    "scheduler", [FlowMatchLCMScheduler(shift=3.0), make_scheduler("dpm-sde", DETERMINISTIC["euler"])]
)
def test_stochastic_samplers_draw_from_the_generator_given(scheduler):
    noise = np.random.RandomState(0).randn(64, 1, 8, 8).astype("float32")
    first = sample(scheduler, 20, noise, generator=ppsd3.TorchGenerator(0))
    assert np.array_equal(first, sample(scheduler, 20, noise, generator=ppsd3.TorchGenerator(0)))
    assert np.abs(first - sample(scheduler, 20, noise, generator=ppsd3.TorchGenerator(1))).max() > 0.05
    assert abs(first.mean() - MEAN) < 0.1


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    "task", ["StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"]
)
def test_every_task_takes_every_sampler(name, task):
    pipe = getattr(ppsd3, task).from_pipe(tiny.make_pipeline())
    pipe.scheduler = make_scheduler(name, pipe.scheduler)
    picture = np.random.RandomState(0).rand(1, 64, 64, 3).astype("float32")
    own = {} if task.endswith("n3Pipeline") else {"image": picture}
    if "Inpaint" in task:
        own["mask_image"] = (picture[..., 0] > 0.5).astype("float32")
    seen = []
    settings = {
        "num_inference_steps": 4,
        "output_type": "np",
        "callback_on_step_end": lambda *a: seen.append(a[1]) or {},
    }
    images = [pipe("a star", generator=ppsd3.TorchGenerator(3), **settings, **own).images for _ in range(2)]
    assert np.isfinite(images[0]).all() and np.array_equal(*images)
    steps = 4 if not own else 3  # strength 0.6 of 4 steps, rounded up
    calls = 2 * steps - 1 if name == "heun" else steps
    assert len(seen) == 2 * calls and pipe.num_timesteps == calls


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("other", SCHEDULERS)
def test_from_the_configuration_of_another(name, other):
    made = make_scheduler(name, make_scheduler(other, FlowMatchEulerDiscreteScheduler(shift=2.5)))
    assert made.config.get("shift", made.config.get("flow_shift")) == 2.5
    assert type(made).__name__ == SCHEDULERS[name][0]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_key_of_another_kind_of_sampler(name):
    """PNDM's, which ppdiffusers' program for deployment hands to samplers of flows."""
    made = getattr(ppsd3, SCHEDULERS[name][0])
    assert (
        "skip_prk_steps" not in made.from_config(FlowMatchEulerDiscreteScheduler().config, skip_prk_steps=True).config
    )


def test_nothing_is_lost_from_a_configuration():
    for lost in ({"use_karras_sigmas": True}, {"stochastic_sampling": True}, {"invert_sigmas": True}):
        config = FlowMatchEulerDiscreteScheduler(**lost).config
        with pytest.raises(ConfigError, match=next(iter(lost))):
            FlowMatchHeunDiscreteScheduler.from_config(config)
    with pytest.raises(ConfigError, match="does not know the key 'shfit'"):
        DPMSolverMultistepScheduler.from_config({"shfit": 3.0})


@pytest.mark.parametrize("class_", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_refusals(class_):
    for wrong in (
        {"use_flow_sigmas": False},
        {"prediction_type": "epsilon"},
        {"solver_type": "logrho"},
        {"solver_order": 4},
        {"use_karras_sigmas": True},
        {"flow_shift": 0.0},
        {"final_sigmas_type": "sigma_min"},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            class_(**wrong)
    scheduler = class_()
    with pytest.raises(InputError, match=r"mu=1.0 would change nothing"):
        scheduler.set_timesteps(4, mu=1.0)
    with pytest.raises(InputError, match="one number of steps"):
        scheduler.set_timesteps(4, sigmas=[1.0, 0.5])
    scheduler.set_timesteps(1)
    x = paddle.ones([1, 1, 2, 2])
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(InputError, match="All steps of the schedule are done"):
        scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_own_sigmas(name):
    pipe = tiny.make_pipeline()
    pipe.scheduler = make_scheduler(name, pipe.scheduler)
    settings = {"sigmas": [1.0, 0.7, 0.3], "output_type": "np", "generator": ppsd3.TorchGenerator(0)}
    if name == "heun":
        with pytest.raises(InputError, match="takes no `sigmas`"):
            pipe("a star", **settings)
    else:
        assert np.isfinite(pipe("a star", **settings).images).all() and pipe.num_timesteps == 3


@pytest.mark.parametrize("name", SCHEDULERS)
def test_saved_and_loaded(name, tmp_path):
    made = make_scheduler(name, FlowMatchEulerDiscreteScheduler(shift=2.5))
    made.save_pretrained(tmp_path)
    again = type(made).from_pretrained(tmp_path)
    assert again.config == made.config


def test_inpainting_noise_between_the_calls_of_a_step():
    scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(3)
    scheduler.set_begin_index(0)
    x, noise = paddle.zeros([1, 1, 2, 2]), paddle.ones([1, 1, 2, 2])
    for i, t in enumerate(scheduler.timesteps[:-1]):
        scheduler.step(noise, t, x)
        mixed = scheduler.scale_noise(x, scheduler.timesteps[i + 1], noise)
        assert float(mixed[0, 0, 0, 0]) == pytest.approx(float(scheduler.sigmas[i + 1]))


@pytest.mark.parametrize("mode", ["lanczos", "BICUBIC", "", None])
def test_lcm_refuses_an_unknown_upscale_mode_when_it_is_made(mode):
    with pytest.raises(ConfigError, match="upscale_mode"):
        FlowMatchLCMScheduler(upscale_mode=mode)
    config = {**FlowMatchLCMScheduler().config, "upscale_mode": mode}
    with pytest.raises(ConfigError, match="upscale_mode"):
        FlowMatchLCMScheduler.from_config(config)
