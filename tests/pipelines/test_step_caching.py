"""Step caches: exact where they may not save, near where they do, and counted."""

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3 import (
    EasyCache,
    FirstBlockCache,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    TaylorCache,
    TorchGenerator,
)
from ppsd3.pipelines.stable_diffusion_3.guidance import Query
from ppsd3.utils.errors import InputError

CACHES = {"taylor": TaylorCache, "easy": EasyCache, "first block": FirstBlockCache}
EXACT = [TaylorCache(interval=1), EasyCache(threshold=0), FirstBlockCache(threshold=0), TaylorCache(warmup=20)]


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def draw(pipe, cache=None, **settings):
    pipe.disable_cache()
    if cache is not None:
        pipe.enable_cache(cache)
    settings = {"prompt": "a star", "num_inference_steps": 12, "output_type": "np", **settings}
    return pipe(generator=TorchGenerator(3), **settings).images


@pytest.mark.parametrize("cache", EXACT, ids=lambda cache: f"{type(cache).__name__} {vars(cache)}")
def test_without_savings_nothing_changes(pipe, cache):
    assert np.array_equal(draw(pipe, cache), draw(pipe))
    assert cache.evaluations == cache.calls == 12


@pytest.fixture(scope="module")
def trained():
    """Random weights answer wildly to small changes; a trained model does not."""
    pipe = StableDiffusion3Pipeline.from_pretrained("shapes")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def decibels(near, exact):
    return 10 * np.log10(1 / np.mean((near - exact) ** 2))


@pytest.mark.parametrize("name", CACHES)
def test_saves_evaluations_and_stays_near(trained, name):
    settings = {"prompt": ["a red circle", "a blue square above a green star"], "num_inference_steps": 28}
    settings["guidance_scale"] = 7.0
    cache = CACHES[name]()
    exact, near = draw(trained, **settings), draw(trained, cache, **settings)
    assert cache.calls == 28 and 28 / cache.evaluations >= 1.6
    assert not np.array_equal(near, exact) and decibels(near, exact) > 30
    assert np.array_equal(draw(trained, cache, **settings), near)  # a picture begins without memories


@pytest.mark.parametrize("name", CACHES)
def test_every_query_of_a_guidance_has_its_own_memory(trained, name):
    settings = {"skip_guidance_layers": [1], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 2.0}
    settings.update(num_inference_steps=28, skip_layer_guidance_scale=0.5, guidance_scale=7.0)
    cache = CACHES[name]()
    exact, near = draw(trained, **settings), draw(trained, cache, **settings)
    assert cache.calls == 56 and cache.evaluations < 45
    assert decibels(near, exact) > 25


def test_without_guidance(trained):
    cache = FirstBlockCache()
    settings = {"guidance_scale": 1.0, "num_inference_steps": 28}
    assert decibels(draw(trained, cache, **settings), draw(trained, **settings)) > 30
    assert cache.evaluations < 28


def test_a_replaced_condition_is_evaluated(pipe):
    def replace(pipe, step, timestep, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"] * 1.0} if step == 5 else {}

    cache = TaylorCache(interval=100, warmup=2)
    names = ["prompt_embeds"]
    draw(pipe, cache, callback_on_step_end=replace, callback_on_step_end_tensor_inputs=names)
    # the callback makes a new condition at every step, changed or not
    assert cache.evaluations > 3


def test_a_callback_that_replaces_nothing_costs_nothing(pipe):
    cache, seen = TaylorCache(), []
    silent = draw(pipe, cache)
    evaluations = cache.evaluations

    def look(pipe, step, timestep, tensors):
        seen.append(step)
        return tensors

    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    looked_at = draw(pipe, cache, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    assert len(seen) == 12 and cache.evaluations == evaluations < 12
    assert np.array_equal(looked_at, silent)


def test_two_evaluations_at_one_time(pipe):
    """Heun's sampler asks twice at each timestep; a polynomial goes through one of the two."""
    heun = FlowMatchHeunDiscreteScheduler.from_config(pipe.scheduler.config)
    own, pipe.scheduler = pipe.scheduler, heun
    try:
        cache = TaylorCache(order=2, interval=3)
        assert np.isfinite(draw(pipe, cache)).all() and cache.evaluations < cache.calls == 23
    finally:
        pipe.scheduler = own


def test_polynomials_are_exact_on_polynomials():
    class Quadratic:
        timesteps = paddle.to_tensor(np.linspace(1000, 100, 10, dtype="float32"))

        def __call__(self, latents, step, query):
            t = float(self.timesteps[step]) / 1000
            return paddle.to_tensor(1 + 2 * t - 3 * t * t)

    query = Query(condition=object())

    velocity = Quadratic()
    cache = TaylorCache(interval=3, order=2, warmup=3)
    cached = cache.start(velocity)
    for step in range(10):
        assert abs(float(cached(paddle.zeros([1]), step, query)) - float(velocity(None, step, None))) < 1e-5
    assert cache.evaluations == 6


def test_other_tasks_and_samplers(pipe):
    from ppsd3.cli.options import SCHEDULERS, make_scheduler

    other = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    picture = np.random.RandomState(0).rand(1, 64, 64, 3).astype("float32")
    for name in SCHEDULERS:
        other.scheduler = make_scheduler(name, pipe.scheduler)
        cache = TaylorCache(warmup=2)
        images = draw(other, cache, image=picture)
        assert np.isfinite(images).all() and cache.evaluations < cache.calls, name


def test_refusals(pipe):
    for kind, name, value in ((TaylorCache, "interval", 0), (TaylorCache, "order", -1), (EasyCache, "threshold", -1)):
        with pytest.raises(InputError, match=f"`{name}` is {value}"):
            kind(**{name: value})
    with pytest.raises(InputError, match=r"`warmup` is 1.5"):
        FirstBlockCache(warmup=1.5)
    with pytest.raises(InputError, match="has to be a StepCache"):
        pipe.enable_cache("taylor")
