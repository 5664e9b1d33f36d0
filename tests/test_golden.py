"""Tiny networks of every kind against outputs that diffusers and transformers gave, without needing either."""

import paddle
import pytest
from helpers import golden, tiny

from ppsd3 import AutoencoderKL, CLIPTextModelWithProjection, SD3Transformer2DModel, T5EncoderModel


@pytest.fixture(autouse=True)
def no_gradients():
    with paddle.no_grad():
        yield


@pytest.mark.parametrize("case", golden.TRANSFORMER)
def test_transformer(case):
    changes, grid, call = golden.TRANSFORMER[case]
    config = {**tiny.TRANSFORMER, **changes}
    model = tiny.fill(SD3Transformer2DModel(**config))
    inputs = {key: paddle.to_tensor(array) for key, array in golden.transformer_inputs(config, grid).items()}
    assert golden.difference(model(**inputs, **call).sample, golden.load("transformer")[case]) <= golden.BAR


def test_vae():
    model, expected = tiny.fill(AutoencoderKL(**tiny.VAE)), golden.load("vae")
    picture, latents = (paddle.to_tensor(array) for array in golden.vae_inputs())
    assert golden.difference(model.encode(picture).latent_dist.parameters, expected["moments"]) <= golden.BAR
    assert golden.difference(model.decode(latents).sample, expected["picture"]) <= golden.BAR


@pytest.mark.parametrize("case", golden.CLIP)
def test_clip(case):
    model, expected = tiny.fill(CLIPTextModelWithProjection(**golden.CLIP[case])), golden.load("clip")
    result = model(paddle.to_tensor(golden.clip_ids()), output_hidden_states=True)
    assert golden.difference(result.text_embeds, expected[f"{case}_text_embeds"]) <= golden.BAR
    assert golden.difference(result.hidden_states[-2], expected[f"{case}_penultimate"]) <= golden.BAR


@pytest.mark.parametrize("case", golden.T5)
def test_t5(case):
    model = tiny.fill(T5EncoderModel(**golden.T5[case]))
    result = model(paddle.to_tensor(golden.t5_ids())).last_hidden_state
    assert golden.difference(result, golden.load("t5")[case]) <= golden.BAR
