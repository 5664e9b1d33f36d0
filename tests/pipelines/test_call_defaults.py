"""Defaults of the call that a checkpoint brings along."""

import json

import pytest
from helpers import tiny

from ppsd3 import AutoPipelineForImage2Image, DiffusionPipeline, StableDiffusion3Img2ImgPipeline
from ppsd3.utils.errors import ConfigError, InputError

OWN = {"guidance_scale": 3.0, "num_inference_steps": 2}


@pytest.fixture
def pipe():
    made = tiny.make_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def draws(pipe, *args, **call):
    """The guidance and the steps of a call."""
    pipe(*args, output_type="latent", **call)
    return pipe.guidance_scale, pipe.num_timesteps


def test_without_any_the_call_has_the_declared_ones(pipe):
    assert pipe.call_defaults == {}
    assert draws(pipe, "a cat") == (7.0, 28)


def test_they_act_where_the_call_leaves_them_out(pipe):
    pipe.call_defaults = OWN
    assert draws(pipe, "a cat") == (3.0, 2)
    assert draws(pipe, "a cat", guidance_scale=7.0) == (7.0, 2)
    assert draws(pipe, "a cat", None, None, 64, 64, 1) == (3.0, 1)


def test_they_are_saved_loaded_and_carried_to_other_tasks(pipe, tmp_path):
    pipe.call_defaults = OWN
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_call_defaults"] == OWN
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert loaded.call_defaults == OWN
    assert StableDiffusion3Img2ImgPipeline.from_pipe(loaded).call_defaults == OWN
    assert AutoPipelineForImage2Image.from_pretrained(tmp_path).call_defaults == OWN


@pytest.mark.parametrize(
    "values, message",
    [
        ({"prompt": "a cat"}, "has 'prompt'; it may have num_inference_steps and guidance_scale"),
        ({"num_inference_steps": 10**9}, "`num_inference_steps` is 1000000000"),
        ({"guidance_scale": "much"}, "`guidance_scale` is 'much'"),
        ([3.0], "`call_defaults` is .* a dict"),
    ],
)
def test_what_no_call_could_have_is_refused(pipe, values, message, tmp_path):
    with pytest.raises(InputError, match=message):
        pipe.call_defaults = values
    pipe.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_call_defaults": values}))
    with pytest.raises(ConfigError, match=rf"model_index.json: .*{message}"):
        DiffusionPipeline.from_pretrained(tmp_path)
