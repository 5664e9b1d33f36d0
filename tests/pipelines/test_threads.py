"""Calls at once: threads that share one set of networks each get the result that they get alone, to the last bit."""

import queue
import random
import threading
import time

import numpy as np
import paddle
import pytest
from helpers import ip_adapters, loras, process, tiny
from PIL import Image

import ppsd3
from ppsd3 import (
    AdaptiveProjectedGuidance,
    ClassifierFreeZeroStarGuidance,
    GuidanceInterval,
    GuidanceRescale,
    PerturbedAttentionGuidance,
    PromptCache,
    SD3ControlNetModel,
    TaylorCache,
    TorchGenerator,
    ops,
)
from ppsd3.pipelines.residency import ModelOffload, SequentialOffload
from ppsd3.utils.paddle_internals import place_of

SIDE = tiny.SIDE


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype="uint8"))


def mask():
    array = np.zeros((SIDE, SIDE), "uint8")
    array[10:40, 10:40] = 255
    return Image.fromarray(array)


def pipelines_of_their_own(directory):
    """Those whose networks are in other states."""
    adapted = tiny.make_pipeline(**tiny.SD35)
    adapted.load_ip_adapter(ip_adapters.tensors(5), image_encoder_folder=None)
    adapted.load_textual_inversion(np.ones([2, 16], "float32"), token="<cat>")
    tiny.make_pipeline().save_pretrained(directory)
    on_demand = ppsd3.StableDiffusion3Pipeline.from_pretrained(directory, load_components="on_demand")
    on_demand.load_ip_adapter(ip_adapters.tensors(3), image_encoder_folder=None)
    offloaded, sequential = tiny.make_pipeline(), tiny.make_pipeline()
    ModelOffload(offloaded._networks(), place_of("cpu"))
    SequentialOffload(sequential._networks(), place_of("cpu"))
    return {
        "adapted": adapted,
        "on demand": on_demand,
        "offloaded": offloaded,
        "sequential": sequential,
        "int8": tiny.make_pipeline().quantize("int8"),
        "compiled": tiny.make_pipeline().compile(),
    }


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
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
    made.update(pipelines_of_their_own(tmp_path_factory.mktemp("threads") / "saved"))
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


FEATURES = paddle.to_tensor(np.random.default_rng(3).standard_normal((2, 6, 24)).astype("float32"))
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
    ("adapted", {"num_inference_steps": 3, "prompt": "a <cat>", "ip_adapter_image_embeds": FEATURES}),
    ("on demand", {"num_inference_steps": 2, "ip_adapter_image_embeds": FEATURES}),
    ("on demand", {"num_inference_steps": 3}),
    ("offloaded", {"num_inference_steps": 2}),
    ("offloaded", {"num_inference_steps": 3}),
    ("int8", {"num_inference_steps": 2, "guidance": GuidanceInterval(SHARED_GUIDANCE, 0.2, 0.8)}),
    ("int8", {"num_inference_steps": 4, "guidance": GuidanceRescale(SHARED_GUIDANCE, 0.5)}),
    ("compiled", {"num_inference_steps": 3, "guidance": ClassifierFreeZeroStarGuidance(5.0)}),
    ("compiled", {"num_inference_steps": 2, "skip_guidance_layers": [1]}),
    ("sequential", {"num_inference_steps": 2}),
    ("sequential", {"num_inference_steps": 1, "generator": None, "latents": paddle.ones([1, 4, 16, 16])}),
]


def draw(pipes, index):
    name, settings = JOBS[index]
    settings = {"prompt": f"a red circle {index}", "generator": TorchGenerator(index), **settings}
    return pipes[name](output_type="np", **settings).images


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
    for indices in ([0, 1, 2, 3, 4, 5, 7, 10], [13, 14, 15, 16, 17, 18, 20, 21]):
        for index, image in zip(indices, at_once([lambda index=index: draw(pipes, index) for index in indices])):
            assert np.array_equal(image, alone[index]), JOBS[index]


@pytest.mark.machine
def test_two_hundred_calls_by_eight_threads(pipes, alone):
    """In any order, beside threads that load, build and change what is not drawn with."""
    calls, other, done = queue.Queue(), pipes["text"], threading.Event()
    for index in random.Random(0).sample([index % len(JOBS) for index in range(200)], 200):
        calls.put(index)

    def work():
        while True:
            try:
                index = calls.get_nowait()
            except queue.Empty:
                return done.set()
            assert np.array_equal(draw(pipes, index), alone[index]), JOBS[index]

    def change():
        while not done.is_set():
            other.load_textual_inversion(np.ones([1, 16], "float32"), token="<dog>")  # waits for all calls over these
            other.unload_textual_inversion()
            with ops.use_kernels("reference"):
                draw({"text": tiny.make_pipeline().compile()}, 0)
            time.sleep(1)

    at_once([work] * 8 + [change])


def test_a_change_waits_for_calls_and_calls_for_a_change(pipes, alone):
    """A call draws with the networks as they are before a change, or as they are after it, and never in between."""
    pipe = ppsd3.StableDiffusion3Pipeline(**tiny.make_components())
    pipe.set_progress_bar_config(disable=True)
    inside = threading.Event()
    before = draw({"text": pipe}, 0)

    def callback(pipe, step, timestep, tensors):
        inside.set()
        return {}

    def change():
        inside.wait()
        pipe.load_lora_weights(lora)

    lora = loras.for_pipeline(pipe)
    works = [lambda: draw_watched(pipe, callback), lambda: draw({"text": pipe}, 0), change]
    first, second, _ = at_once(works)
    after = draw({"text": pipe}, 0)
    assert np.array_equal(first, before) and not np.array_equal(before, after)
    assert np.array_equal(second, before) or np.array_equal(second, after)


def test_the_scale_of_a_picture_is_that_of_the_start_or_of_its_callback(pipes, alone):
    pipe, index = pipes["adapted"], next(index for index, (name, _) in enumerate(JOBS) if name == "adapted")
    seen = []

    def set_by_another(pipe, step, timestep, tensors):
        thread = threading.Thread(target=pipe.set_ip_adapter_scale, args=(1.0,))
        thread.start()
        thread.join()
        return {}

    def set_here(pipe, step, timestep, tensors):
        pipe.set_ip_adapter_scale(0.0)
        seen.append(pipe.is_ip_adapter_active)
        return {}

    try:
        settings = {"prompt": "a <cat>", "output_type": "np", **JOBS[index][1]}
        other = pipe(generator=TorchGenerator(index), callback_on_step_end=set_by_another, **settings).images
        assert np.array_equal(other, alone[index])
        assert pipe.ip_adapter.scales == [1.0] * 5
        pipe.set_ip_adapter_scale(0.5)
        own = pipe(generator=TorchGenerator(index), callback_on_step_end=set_here, **settings).images
        assert seen == [False] * 3 and not np.array_equal(own, alone[index])
        assert pipe.ip_adapter.scales == [0.5] * 5
    finally:
        pipe.set_ip_adapter_scale(0.5)


def test_settings_of_kernels_are_a_calls_own(pipes, alone):
    """A block changes them for what runs in it, and what changes them for all threads does so from the next call on."""
    begun, seen = threading.Barrier(2), []

    def callback(pipe, step, timestep, tensors):
        if step == 0:
            begun.wait()
            begun.wait()
        seen.append(ops.settings.current().level)
        return {}

    def change():
        begun.wait()
        change = ops.use_kernels("paddle")
        with ops.use_kernels("reference"):
            assert ops.settings.current().level == "reference"
        assert ops.settings.current().level == "paddle"
        begun.wait()
        change.__exit__()

    level = ops.settings.current().level
    image, _ = at_once([lambda: draw_watched(pipes["text"], callback), change])
    assert np.array_equal(image, alone[0])
    assert seen == [level] * 3 and ops.settings.current().level == level


def test_threads_that_begin_while_a_graph_is_traced(tmp_path):
    """Paddle puts threads that begin then into static mode for good; and networks are built beside others that draw."""
    code = """
import sys, threading
import numpy as np
import paddle
from helpers import tiny
import ppsd3
from ppsd3 import TorchGenerator

tiny.make_pipeline().save_pretrained(sys.argv[1])

def draw(pipe):
    return pipe("a star", generator=TorchGenerator(0), num_inference_steps=1, output_type="np").images

eager, results = tiny.make_pipeline(), {}
expected = draw(eager)

def note(name, function):
    results[name] = function()

works = {
    "traced": lambda: np.allclose(draw(tiny.make_pipeline().compile()), expected, atol=1e-4),
    "eager": lambda: np.array_equal(draw(eager), expected),
    "loaded": lambda: np.array_equal(draw(ppsd3.DiffusionPipeline.from_pretrained(sys.argv[1])), expected),
    "built": lambda: np.array_equal(draw(tiny.make_pipeline()), expected),
}
threads = [threading.Thread(target=note, args=(name, work)) for name, work in works.items() for _ in range(2)]
for thread in threads:
    thread.start()
    thread.join(0.03)
for thread in threads:
    thread.join()
print(sorted(name for name, right in results.items() if right))
"""
    assert process.run(code, tmp_path / "saved").split("\n")[-2] == "['built', 'eager', 'loaded', 'traced']"


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
