"""The engine: each picture is its serial one, the queue is bounded, and what is stopped ends within one step."""

import contextlib
import threading
import time

import numpy as np
import pytest
from helpers import tiny
from PIL import Image

import ppsd3
from ppsd3.serving import (
    TASKS,
    Cancelled,
    Catalog,
    Engine,
    Limits,
    ModelChoice,
    QueueFull,
    ShuttingDown,
    TimedOut,
    call_arguments_of,
    make_request,
    request_schema,
)
from ppsd3.serving.models import Models
from ppsd3.utils.errors import InputError

STEPS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe():
    made = tiny.make_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


class Held:
    """Models over one pipeline; a call waits at each step for a permit, if it is told to."""

    def __init__(self, pipe):
        self.loads, self.calls, self.free, self.at_step = [], [], threading.Event(), threading.Event()
        self.free.set()
        held, self.steps = self, 0

        class Watched(Models):
            def pipeline(self, *key):
                drawn = super().pipeline(*key)

                def call(callback_on_step_end, **arguments):
                    def on_step_end(*step):
                        held.steps += 1
                        held.at_step.set()
                        assert held.free.wait(30)
                        return callback_on_step_end(*step)

                    held.calls.append(arguments)
                    return drawn(callback_on_step_end=on_step_end, **arguments)

                return call

        def load(choice, quiet):
            self.loads.append(choice)
            if choice.model == "broken":
                raise InputError("no such model")
            return pipe

        self.models = Watched(load)

    @contextlib.contextmanager
    def hold(self):
        """Within the block, the call that runs stays at its present step."""
        self.free.clear()
        self.at_step.clear()
        try:
            yield
        finally:
            self.free.set()


@pytest.fixture
def held(pipe):
    return Held(pipe)


@pytest.fixture
def engine(held):
    with Engine(ModelChoice("tiny"), models=held.models, most_waiting=8) as engine:
        yield engine


def request(prompt="a red circle", seed=0, **values):
    return make_request("generate", {"prompt": prompt, **STEPS, **values}, seed)


def pixels(image):
    return np.asarray(image)


def serial(pipe, prompt, seed, **values):
    return pixels(pipe(prompt, generator=ppsd3.TorchGenerator(seed), **STEPS, **values).images[0])


ASKED = [
    ("a red circle", 1, {}),
    ("blue", 2, {"negative_prompt": "red"}),
    ("a red square of the circle", 3, {"prompt_2": "x"}),
    ("", 4, {"negative_prompt_3": "blue"}),
]


def test_pictures_of_calls_at_once_are_those_drawn_alone(held, pipe):
    with Engine(ModelChoice("tiny"), models=held.models, at_once=2) as engine:
        with held.hold():
            jobs = [engine.submit(request(prompt, seed, **values)) for prompt, seed, values in ASKED]
            while sum(job.state == "drawing" for job in jobs) < 2:
                time.sleep(0.001)
        for (prompt, seed, values), job in zip(ASKED, jobs):
            assert np.array_equal(pixels(job.result(30)[0]), serial(pipe, prompt, seed, **values))


def test_one_call_draws_what_differs_in_texts_and_seeds_alone(held, pipe):
    with Engine(ModelChoice("tiny"), models=held.models, most_in_call=4) as engine:
        with held.hold():
            engine.submit(request(seed=9))
            assert held.at_step.wait(30)
            jobs = [engine.submit(request(prompt, seed, **values)) for prompt, seed, values in ASKED]
        for (prompt, seed, values), job in zip(ASKED, jobs):
            drawn, alone = pixels(job.result(30)[0]), serial(pipe, prompt, seed, **values)
            assert abs(drawn.astype(int) - alone).max() <= 1  # rounding
    assert [len(call["generator"]) for call in held.calls] == [1, 4]


def test_requests_of_other_settings_are_not_drawn_together(held):
    others = ({"height": 96}, {"guidance_scale": 1.0}, {"num_inference_steps": 3}, {"sigmas": [1.0, 0.5]})
    with Engine(ModelChoice("tiny"), models=held.models, most_in_call=4) as engine:
        with held.hold():
            jobs = [engine.submit(request(seed=9))]
            assert held.at_step.wait(30)
            jobs += [engine.submit(request(seed=1, **values)) for values in others]
            jobs += [engine.submit(make_request("generate", {"prompt": "x", **STEPS}, 1, scheduler="heun"))]
        sizes = [job.result(30)[0].size for job in jobs]
    assert sizes[1] == (64, 96)
    assert [len(call["generator"]) for call in held.calls] == [1] * 6


def test_pictures_of_one_request_have_seeds_in_a_row(engine, pipe):
    job = engine.submit(request(seed=5, num_images_per_prompt=5))
    for seed, picture in enumerate(job.result(30), 5):
        assert np.array_equal(pixels(picture), serial(pipe, "a red circle", seed))
    settings = job.request.settings(2)
    assert (settings["seed"], settings["command"], settings["prompt"]) == (7, "generate", "a red circle")


def test_pictures_to_begin_with(engine, pipe):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype="uint8"))
    job = engine.submit(make_request("img2img", {"prompt": "blue", "image": photo, "num_inference_steps": 4}, 3))
    drawn = job.result(30)[0]
    img2img = ppsd3.StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    expected = img2img(
        "blue", image=photo, height=64, width=96, num_inference_steps=4, generator=ppsd3.TorchGenerator(3)
    ).images[0]
    assert np.array_equal(pixels(drawn), pixels(expected))
    with pytest.raises(InputError, match="`mask_image` is missing"):
        make_request("inpaint", {"prompt": "blue", "image": photo})


def test_a_full_queue_refuses_and_says_when_to_come_again(engine, held):
    with held.hold():
        job = engine.submit(request(num_images_per_prompt=8))
        assert held.at_step.wait(30)
        began = time.monotonic()
        with pytest.raises(QueueFull) as refused:
            engine.submit(request())
        assert time.monotonic() - began < 0.1
        assert refused.value.retry_after >= 1
        job.cancel()
        engine.submit(request()).cancel()  # its places are free at once
    assert engine.counts["refused"] == 1


def test_a_cancelled_job_ends_within_a_step(engine, held):
    with held.hold():
        job = engine.submit(request(num_inference_steps=50))
        assert held.at_step.wait(30)
        assert job.cancel()
        assert job.state == "cancelled"
        assert engine.waiting == 0
    with pytest.raises(Cancelled):
        job.result(0)
    engine.submit(request()).result(30)  # the thread is free
    assert held.steps == 1 + 2


def test_who_leaves_a_call_does_not_take_the_others_along(held):
    with Engine(ModelChoice("tiny"), models=held.models, most_in_call=2) as engine:
        with held.hold():
            first = engine.submit(request())
            assert held.at_step.wait(30)
            stays, leaves = engine.submit(request("blue", 1)), engine.submit(request("red", 2))
        for job in leaves.changes():
            if job.state == "drawing":
                job.cancel()
        assert stays.result(30) and first.result(30)
        assert leaves.state == "cancelled"


def test_time_limits(engine, held):
    with held.hold():
        drawn = engine.submit(request(num_inference_steps=50), seconds=30)
        assert held.at_step.wait(30)
        waits = engine.submit(request(), seconds=0.01)
        drawn.deadline = time.monotonic()
        time.sleep(0.02)
    for job in (drawn, waits):
        with pytest.raises(TimedOut, match="took longer than"):
            job.result(30)
    assert engine.submit(request()).result(30)
    assert held.steps == 1 + 2


def test_priorities(engine, held):
    with held.hold():
        engine.submit(request(guidance_scale=2.0))
        assert held.at_step.wait(30)
        low = engine.submit(request(guidance_scale=3.0))
        high = engine.submit(request(guidance_scale=4.0), priority=1)
    assert low.result(30) and high.result(30)
    assert [call["guidance_scale"] for call in held.calls] == [2.0, 4.0, 3.0]


def test_progress_and_previews(engine):
    seen = []
    job = engine.submit(request(), previews=True)
    job.listen(lambda job: seen.append((job.progress, job.previews[0])))
    job.result(30)
    assert [progress for progress, _ in seen][-1] == 1.0
    assert seen[-1][1].size == (16, 16)
    assert job.steps == 2
    assert [changed.state for changed in job.changes()] == ["done"]


def test_models_change_without_dropping_the_queue(engine, held):
    with held.hold():
        first = engine.submit(request())
        assert held.at_step.wait(30)
        waits = engine.submit(request(guidance_scale=2.0))
        loaded = engine.load(ModelChoice("other"))
        assert not loaded.done()
    assert first.result(30) and waits.result(30)
    assert loaded.result(30) is None
    with pytest.raises(InputError, match="no such model"):
        engine.load(ModelChoice("broken")).result(30)
    assert engine.submit(request()).result(30)
    assert [choice.model for choice in held.loads] == ["tiny", "other", "broken", "other"]
    assert engine.choice.model == "other"


def test_one_fault_is_one_jobs(engine, held, pipe):
    """What the pipeline alone can refuse fails its own job, not those drawn with it."""
    with held.hold():
        first = engine.submit(request(skip_guidance_layers=[99]))
        assert held.at_step.wait(0.2) is False or first.over
    with pytest.raises(InputError, match="layer"):
        first.result(30)
    assert engine.submit(request()).result(30)


def test_closing_finishes_or_refuses(held):
    engine = Engine(ModelChoice("tiny"), models=held.models)
    engine.start()
    with held.hold():
        job = engine.submit(request())
        assert held.at_step.wait(30)
        closing = threading.Thread(target=engine.close, args=(30,))
        closing.start()
        while not engine.closing:
            time.sleep(0.001)
        with pytest.raises(ShuttingDown):
            engine.submit(request())
    assert job.result(30)
    closing.join(30)
    assert not engine.ready

    engine = Engine(ModelChoice("tiny"), models=held.models)
    engine.start()
    jobs = [engine.submit(request(num_inference_steps=50)) for _ in range(8)]
    engine.close()
    for job in jobs:
        with pytest.raises(ShuttingDown):
            job.result(0)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"height": 4096}, "`height` asks for 4096 pixels"),
        ({"num_inference_steps": 999}, "`num_inference_steps` asks for 999 steps"),
        ({"num_images_per_prompt": 99}, "`num_images_per_prompt` asks for 99 pictures"),
        ({"prompt": "x" * 20_000}, "`prompt` asks for 20000 characters"),
        ({"prompt": ["a", "b"]}, "one text"),
        ({"sigmas": [0.5] * 500}, "500 values"),
        ({"guidance_scale": "much"}, "guidance_scale"),
        ({"generator": 1}, "generator"),
        ({"callback_on_step_end": print}, "callback_on_step_end"),
        ({"hight": 64}, "height"),
    ],
)
def test_what_is_refused(values, said):
    with pytest.raises(InputError, match=said):
        make_request("generate", {"prompt": "x", **values}, limits=Limits())


@pytest.mark.parametrize("task", TASKS)
def test_the_schema_has_every_argument(task):
    names = [argument.name for argument in call_arguments_of(task)]
    assert list(request_schema(task)["properties"]) == names
    assert {"prompt", "num_inference_steps", "num_images_per_prompt"} <= set(names)


def test_the_catalog_names_what_may_be_loaded_and_nothing_else(tmp_path, tiny_checkpoint, monkeypatch):
    (tmp_path / "mine").symlink_to(tiny_checkpoint)
    hub = tmp_path / "hub"
    snapshot = hub / "models--someone--drawing" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    folder = tmp_path / "models" / "sub"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    catalog = Catalog(ModelChoice("shapes"), str(tmp_path / "models"))
    assert catalog.names() == ["shapes", "sub", "someone/drawing"]
    assert catalog.choice("sub").model == str(folder)
    assert catalog.choice(None, lora=("x",)).lora == ("x",)
    assert catalog.name_of(catalog.choice("sub")) == "sub"
    for name in (str(tmp_path / "mine"), "../mine", "", "nobody/nothing"):
        with pytest.raises(InputError, match="There is no model"):
            catalog.choice(name)
