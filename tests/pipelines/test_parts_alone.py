"""Pipelines of which parts are missing: what they do without, and which text nobody would read."""

import logging

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3 import StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline, TorchGenerator
from ppsd3.utils.errors import InputError

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
NAMES = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
FEW = {"num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture(scope="module")
def parts():
    return tiny.make_components()


@pytest.fixture(scope="module")
def whole(parts):
    return make(parts)


def make(parts, *absent, kind=StableDiffusion3Pipeline):
    pipe = kind(**{**parts, **dict.fromkeys(absent)})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, *args, **arguments):
    return pipe(*args, generator=TorchGenerator(1), **{**FEW, **arguments}).images.numpy()


def test_texts_without_an_encoder(parts, whole):
    bare = make(parts, *ENCODERS)
    embeds = dict(zip(NAMES, whole.encode_prompt("a star", None, None)))
    unread = "no text encoder that reads it"
    for arguments in (
        {"prompt": "a star"},
        {"prompt": ["", "a star"]},
        {"prompt": "", "prompt_3": "a star"},
        {"prompt": "", "negative_prompt": "blue"},
        {"prompt": "a star", "guidance_scale": 1.0},
    ):
        with pytest.raises(InputError, match=unread):
            draw(bare, **arguments)
    with pytest.raises(InputError, match=unread):
        bare.encode_prompt("a star", None, None)
    with pytest.raises(InputError, match="Guidance needs `negative_prompt_embeds`"):
        draw(bare, **{name: tensor for name, tensor in embeds.items() if "negative" not in name})
    assert np.isfinite(draw(bare, "")).all()
    np.testing.assert_array_equal(draw(bare, **embeds), draw(whole, "a star"))


def test_a_text_for_an_encoder_that_is_missing(parts, caplog):
    without_t5 = make(parts, "text_encoder_3", "tokenizer_3")
    with caplog.at_level(logging.WARNING, "ppsd3"):
        drawn = draw(without_t5, "a star", prompt_3="a red circle")
        draw(without_t5, "a star", prompt_3="a red circle")
    warnings = [r.getMessage() for r in caplog.records]
    assert warnings == ["`prompt_3` changes nothing, because the pipeline has no `text_encoder_3`."]
    np.testing.assert_array_equal(drawn, draw(without_t5, "a star"))
    with pytest.raises(InputError, match="no text encoder that reads it"):
        draw(without_t5, "", prompt_3="a star")


def test_encoding_without_the_rest(parts, whole):
    alone = make(parts, "transformer", "vae", "scheduler")
    for found, expected in zip(alone.encode_prompt("a star", None, None), whole.encode_prompt("a star", None, None)):
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
    with pytest.raises(InputError, match="neither `transformer` nor `text_encoder_3`"):
        make(parts, "transformer", "text_encoder_3", "tokenizer_3").encode_prompt("a star", None, None)
    with pytest.raises(InputError, match="has no `transformer`"):
        draw(alone, "a star")


def test_latents_without_a_vae(parts, whole):
    alone = make(parts, "vae")
    alone.vae_scale_factor = whole.vae_scale_factor  # of a VAE as small as this; SD3's is 8, the default
    drawn = draw(alone, "a star")
    np.testing.assert_array_equal(drawn, draw(whole, "a star"))
    with pytest.raises(InputError, match="has no `vae`"):
        draw(alone, "a star", output_type="pil")
    pixels = whole.vae.decode(whole.vae.unscale_latents(paddle.to_tensor(drawn)), return_dict=False)[0]
    picture = make(parts, "transformer", "scheduler", *ENCODERS).image_processor.postprocess(pixels, "np")
    expected = whole("a star", generator=TorchGenerator(1), **{**FEW, "output_type": "np"}).images
    np.testing.assert_array_equal(picture, expected)

    to_image = make(parts, "vae", kind=StableDiffusion3Img2ImgPipeline)
    to_image.vae_scale_factor = whole.vae_scale_factor
    arguments = {"image": paddle.to_tensor(drawn), "strength": 0.5, "num_inference_steps": 4}
    from_latents = draw(to_image, "a star", **arguments)
    np.testing.assert_array_equal(
        from_latents, draw(make(parts, kind=StableDiffusion3Img2ImgPipeline), "a star", **arguments)
    )


def test_embeds_without_tokenizers(parts, whole):
    embeds = dict(zip(NAMES, whole.encode_prompt("a star", None, None)))
    without = make(parts, "tokenizer", "tokenizer_2", "tokenizer_3")
    np.testing.assert_array_equal(draw(without, **embeds), draw(whole, "a star"))
    with pytest.raises(InputError, match="text encoder but no `tokenizer`"):
        draw(without, "a star")


def test_from_files_and_from_other_pipelines(whole, tmp_path):
    whole.save_pretrained(tmp_path)
    alone = StableDiffusion3Pipeline.from_pretrained(tmp_path, transformer=None, vae=None)
    embeds = alone.encode_prompt("a star", None, None)[0]
    np.testing.assert_array_equal(embeds.numpy(), whole.encode_prompt("a star", None, None)[0].numpy())
    other = StableDiffusion3Img2ImgPipeline.from_pipe(alone)
    assert other.transformer is None and other.text_encoder is alone.text_encoder
    without = StableDiffusion3Pipeline.from_pretrained(tmp_path, **dict.fromkeys(ENCODERS))
    assert without.text_encoder is None and without.transformer is not None


# Method -> (arguments, the component that it needs).
NEEDS = {
    "enable_vae_tiling": ((), "vae"),
    "disable_vae_tiling": ((), "vae"),
    "enable_vae_slicing": ((), "vae"),
    "disable_vae_slicing": ((), "vae"),
    "fuse_qkv_projections": ((), "transformer"),
    "unfuse_qkv_projections": ((), "transformer"),
}


@pytest.mark.parametrize("method", NEEDS)
def test_what_is_missing_is_named(parts, method):
    arguments, component = NEEDS[method]
    with pytest.raises(InputError, match=f"has no `{component}`, which this needs"):
        getattr(make(parts, component), method)(*arguments)
