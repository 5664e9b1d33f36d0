"""Calls at once: threads that share one set of networks each get the result that they get alone, to the last bit."""

import threading

import numpy as np
import pytest
from helpers import loras, tiny
from PIL import Image

import ppsd3
from ppsd3 import (
    AdaptiveProjectedGuidance,
    PerturbedAttentionGuidance,
    PromptCache,
    SD3ControlNetModel,
    TaylorCache,
    TorchGenerator,
)

SIDE = tiny.SIDE


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype="uint8"))


def mask():
    array = np.zeros((SIDE, SIDE), "uint8")
    array[10:40, 10:40] = 255
    return Image.fromarray(array)


@pytest.fixture(scope="module")
def pipes():
    first = tiny.make_pipeline()
    first.load_lora_weights(loras.for_pipeline(first))
    net = tiny.randomize(SD3ControlNetModel(**{**tiny.TRANSFORMER, "num_layers": 2}), 30, 0.5)
    net.eval()
    made = {
        "text": first,
        "img2img": ppsd3.StableDiffusion3Img2ImgPipeline.from_pipe(first),
        "inpaint": ppsd3.StableDiffusion3InpaintPipeline.from_pipe(first),
        "PAG": ppsd3.StableDiffusion3PAGPipeline.from_pipe(first),
        "control": ppsd3.StableDiffusion3ControlNetPipeline.from_pipe(first, controlnet=net),
        "cached": ppsd3.StableDiffusion3Pipeline.from_pipe(first),
    }
    made["cached"].enable_cache(TaylorCache(warmup=1))
    made["cached"].enable_prompt_cache(PromptCache())
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


SHARED_GUIDANCE = AdaptiveProjectedGuidance(6.0, momentum=-0.5)
JOBS = [
    ("text", {"num_inference_steps": 3}),
    ("text", {"num_inference_steps": 5, "guidance_scale": 2.0}),
    ("img2img", {"image": picture(0), "num_inference_steps": 6, "strength": 0.7}),
    ("inpaint", {"image": picture(1), "mask_image": mask(), "num_inference_steps": 5}),
    ("PAG", {"num_inference_steps": 4}),
    ("text", {"num_inference_steps": 4, "guidance": PerturbedAttentionGuidance(3.0, layers=[0])}),
    ("control", {"control_image": picture(2), "num_inference_steps": 4}),
    ("cached", {"num_inference_steps": 7}),
    ("cached", {"num_inference_steps": 6, "guidance": SHARED_GUIDANCE}),
    ("text", {"num_inference_steps": 6, "guidance": SHARED_GUIDANCE}),
    ("text", {"num_inference_steps": 3, "joint_attention_kwargs": {"scale": 0.2}}),
    ("inpaint", {"image": picture(1), "mask_image": mask(), "joint_attention_kwargs": {"scale": 2.0}}),
    ("text", {"num_inference_steps": 2, "num_images_per_prompt": 2, "guidance_scale": 1.0}),
]


def draw(pipes, index):
    name, settings = JOBS[index]
    generator = TorchGenerator(index)
    return pipes[name](f"a red circle {index}", generator=generator, output_type="np", **settings).images


def at_once(works):
    """The results of functions that all begin at the same time, each in a thread of its own."""
    results, errors = [None] * len(works), []
    barrier = threading.Barrier(len(works))

    def run(index):
        barrier.wait()
        try:
            results[index] = works[index]()
        except BaseException as error:  # noqa: BLE001 (raised again by the assertion)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    return results


@pytest.fixture(scope="module")
def alone(pipes):
    return [draw(pipes, index) for index in range(len(JOBS))]


@pytest.mark.parametrize("first", range(len(JOBS) - 1))
def test_two_at_once(pipes, alone, first):
    works = [lambda index=index: draw(pipes, index) for index in (first, first + 1)]
    for index, image in zip((first, first + 1), at_once(works)):
        assert np.array_equal(image, alone[index])


def test_eight_at_once(pipes, alone):
    indices = [0, 1, 2, 3, 4, 5, 7, 10]
    for index, image in zip(indices, at_once([lambda index=index: draw(pipes, index) for index in indices])):
        assert np.array_equal(image, alone[index])


def test_a_callback_stops_and_changes_its_own_call(pipes, alone):
    pipe, steps = pipes["text"], {"stopped": 0, "guided": []}
    inside = threading.Barrier(2)

    def stop(pipe, step, timestep, tensors):
        if step == 0:
            inside.wait()
        steps["stopped"] += 1
        pipe._interrupt = True
        return {}

    def watch(pipe, step, timestep, tensors):
        if step == 0:
            inside.wait()
        steps["guided"].append((pipe.guidance_scale, pipe.num_timesteps, len(pipe.scheduler.timesteps)))
        return {}

    settings = {"output_type": "np", "num_inference_steps": 5}
    _, watched = at_once(
        [
            lambda: pipe("a star", callback_on_step_end=stop, guidance_scale=4.0, **settings).images,
            lambda: draw_watched(pipe, watch),
        ]
    )
    assert steps["stopped"] == 1
    assert steps["guided"] == [(7.0, 3, 3)] * 3
    assert np.array_equal(watched, alone[0])


def draw_watched(pipe, callback):
    settings = JOBS[0][1]
    generator = TorchGenerator(0)
    return pipe(
        "a red circle 0", generator=generator, output_type="np", callback_on_step_end=callback, **settings
    ).images


def test_another_thread_interrupts_what_is_running(pipes):
    pipe, done = pipes["text"], []

    def interrupt_from_outside(pipe, step, timestep, tensors):
        done.append(step)
        if step == 1:
            thread = threading.Thread(target=lambda: setattr(pipe, "_interrupt", True))
            thread.start()
            thread.join()
        return {}

    pipe("a star", num_inference_steps=6, callback_on_step_end=interrupt_from_outside)
    assert done == [0, 1]


def test_a_call_leaves_what_it_is_given_alone(pipes):
    pipe, guidance = pipes["text"], AdaptiveProjectedGuidance(6.0, momentum=-0.5)
    kwargs, names = {"scale": 0.5}, ["latents"]
    timesteps, state = pipe.scheduler.timesteps, dict(vars(guidance))
    pipe(
        "a star",
        num_inference_steps=3,
        guidance=guidance,
        joint_attention_kwargs=kwargs,
        callback_on_step_end=lambda *_: {},
        callback_on_step_end_tensor_inputs=names,
    )
    assert pipe.scheduler.timesteps is timesteps
    assert vars(guidance) == state
    assert (kwargs, names) == ({"scale": 0.5}, ["latents"])


def test_a_call_inside_a_callback(pipes, alone):
    pipe, inner = pipes["text"], []

    def callback(pipe, step, timestep, tensors):
        if step == 0:
            inner.append(draw(pipes, 0))
            assert pipe.num_timesteps == 5
        return {}

    settings = JOBS[1][1]
    outer = pipe(
        "a red circle 1",
        generator=TorchGenerator(1),
        output_type="np",
        callback_on_step_end=callback,
        **settings,
    ).images
    assert np.array_equal(inner[0], alone[0]) and np.array_equal(outer, alone[1])
