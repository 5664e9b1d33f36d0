"""Callbacks as objects: a call gives them the tensors that they name."""

import numpy as np
import pytest
from helpers import tiny

from ppsd3 import TorchGenerator
from ppsd3.callbacks import MultiPipelineCallbacks, PipelineCallback, SD3CFGCutoffCallback
from ppsd3.utils.errors import InputError


class Halving(PipelineCallback):
    """Halves the latents at its step."""

    tensor_inputs = ["latents"]

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        if not self.is_cutoff(pipeline, step_index):
            return {}
        return {"latents": callback_kwargs["latents"] * 0.5}


class Counting(PipelineCallback):
    """Counts the rows of the prompts after each step."""

    tensor_inputs = ["prompt_embeds"]

    def __init__(self):
        super().__init__()
        self.rows = []

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        self.rows.append(callback_kwargs["prompt_embeds"].shape[0])
        return callback_kwargs


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def draw(pipe, callback=None, **options):
    settings = {"num_inference_steps": 4, "generator": TorchGenerator(0), "output_type": "latent", **options}
    return pipe(["a red circle", "a star"], callback_on_step_end=callback, **settings).images.numpy()


@pytest.mark.parametrize("cutoff", [{"cutoff_step_ratio": 0.25}, {"cutoff_step_ratio": None, "cutoff_step_index": 1}])
def test_guidance_ends(pipe, cutoff):
    counting = Counting()
    drawn = draw(pipe, MultiPipelineCallbacks([SD3CFGCutoffCallback(**cutoff), counting]))
    assert counting.rows == [4, 2, 2, 2]  # after step 1

    def by_hand(pipe, step, timestep, tensors):
        if step == 1:
            pipe._guidance_scale = 0.0
        return {}

    np.testing.assert_array_equal(drawn, draw(pipe, by_hand))
    assert np.abs(drawn - draw(pipe)).max() > 1e-4


def test_without_guidance_there_is_nothing_to_end(pipe):
    callback = SD3CFGCutoffCallback(cutoff_step_index=0)
    assert np.array_equal(draw(pipe, callback, guidance_scale=1.0), draw(pipe, guidance_scale=1.0))


def test_one_of_your_own(pipe):
    assert np.abs(draw(pipe, Halving(cutoff_step_index=3)) - 0.5 * draw(pipe)).max() < 1e-6
    assert np.array_equal(draw(pipe, Halving(cutoff_step_index=9)), draw(pipe))
    assert Halving(cutoff_step_index=3).config.cutoff_step_index == 3


def test_refusals(pipe):
    for cutoff in ({"cutoff_step_ratio": 1.5}, {"cutoff_step_ratio": None}):
        with pytest.raises(InputError, match="cutoff_step_ratio"):
            SD3CFGCutoffCallback(**cutoff)

    class Asking(Halving):
        tensor_inputs = ["nothing"]

    with pytest.raises(InputError, match="nothing"):
        draw(pipe, Asking())
