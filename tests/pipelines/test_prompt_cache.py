"""Conditions that are kept: the same pictures, less encoding, and never a stale one."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3 import PromptCache, StableDiffusion3Pipeline, TorchGenerator, WeightedPrompts
from ppsd3.utils.errors import InputError, NotFiniteError


@pytest.fixture
def pipe():
    return tiny.make_pipeline()


def draw(pipe, prompt="a star", **settings):
    settings = {"num_inference_steps": 1, "output_type": "np", "negative_prompt": "blue", **settings}
    return pipe(prompt, generator=TorchGenerator(3), **settings).images


def test_each_prompt_is_encoded_once(pipe):
    exact, other = draw(pipe), draw(pipe, ["a star", "a circle"])
    cache = PromptCache()
    pipe.enable_prompt_cache(cache)
    assert np.abs(draw(pipe) - exact).max() < 1e-5
    assert (cache.hits, cache.misses) == (0, 2)
    assert np.abs(draw(pipe) - exact).max() < 1e-5
    assert (cache.hits, cache.misses) == (2, 2)
    assert np.abs(draw(pipe, ["a star", "a circle"]) - other).max() < 1e-5
    assert (cache.hits, cache.misses) == (5, 3)  # "a star", and "blue" twice
    pipe.disable_prompt_cache()
    draw(pipe)
    assert cache.hits == 5


def double(weight):
    weight.set_value(weight.detach() * 2.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: {"prompt_2": "a circle"},
        lambda pipe: {"max_sequence_length": 77},
        lambda pipe: {"clip_skip": 1},
        lambda pipe: double(pipe.text_encoder.text_model.embeddings.token_embedding.weight),
        lambda pipe: pipe.text_encoder_3.quantize("int8") and {},
        lambda pipe: setattr(pipe, "text_encoder_2", None) or setattr(pipe, "tokenizer_2", None) or {},
    ],
)
def test_what_changes_a_condition_is_seen(pipe, change):
    cache = PromptCache()
    pipe.enable_prompt_cache(cache)
    draw(pipe)
    settings = change(pipe) or {}
    kept = draw(pipe, **(settings if isinstance(settings, dict) else {}))
    assert cache.misses > 2
    pipe.disable_prompt_cache()
    assert np.abs(kept - draw(pipe, **(settings if isinstance(settings, dict) else {}))).max() < 1e-5


def test_files_outlive_the_process(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipe")
    for options in ({}, {"load_components": "on_demand"}):
        folder = tmp_path / f"cache {len(options)}"
        for round in range(2):
            again = StableDiffusion3Pipeline.from_pretrained(tmp_path / "pipe", **options)
            again.set_progress_bar_config(disable=True)
            cache = PromptCache(folder)
            again.enable_prompt_cache(cache)
            image = draw(again)
            assert (cache.hits, cache.misses) == ((0, 2) if round == 0 else (2, 0))
        assert np.abs(image - draw(pipe)).max() < 1e-5
        for name in os.listdir(folder):  # a damaged file is made anew
            (folder / name).write_bytes(b"no arrays")
        cache = PromptCache(folder)
        again.enable_prompt_cache(cache)
        assert np.abs(draw(again) - image).max() < 1e-5 and cache.misses == 2


def test_the_least_recently_used_goes_first(pipe):
    cache = PromptCache(max_entries=2)
    pipe.enable_prompt_cache(cache)
    prompts = ["a star", "a circle", "a square"]
    exact = draw(pipe, prompts)
    assert cache.misses == 4 and len(cache._entries) == 2
    assert np.abs(draw(pipe, prompts) - exact).max() < 1e-5


def test_refusals(pipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        PromptCache(tmp_path / "file")
    with pytest.raises(InputError, match="`max_entries` is 0"):
        PromptCache(max_entries=0)
    with pytest.raises(InputError, match="has to be a PromptCache"):
        pipe.enable_prompt_cache({})
    cache = PromptCache()
    pipe.enable_prompt_cache(cache)
    pipe.prompt_reader = WeightedPrompts()
    draw(pipe, "a (star:1.3)")
    assert cache.hits == cache.misses == 0


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"])
def test_numbers_that_are_none_name_the_component(pipe, name):
    for weight in getattr(pipe, name).parameters():
        if weight.ndim == 1:
            weight.set_value(paddle.full_like(weight, float("nan")))
    with pytest.raises(NotFiniteError, match=f"The {name} gave"):
        draw(pipe)
    if name != "vae":
        with pytest.raises(NotFiniteError, match=f"The {name} gave"):
            draw(pipe, output_type="latent")


def test_threads_share_a_small_cache(pipe):
    """Each draws what it draws alone, though entries come and go."""
    prompts = ["a star", "a circle", "red", "a"]
    expected = []
    for prompt in prompts:
        pipe.enable_prompt_cache(PromptCache())
        expected.append(draw(pipe, prompt))
    cache = PromptCache(max_entries=1)
    pipe.enable_prompt_cache(cache)
    with ThreadPoolExecutor(len(prompts)) as threads:
        for images in [threads.map(lambda prompt: draw(pipe, prompt), prompts) for _ in range(4)]:
            assert all(map(np.array_equal, images, expected))
    assert cache.hits + cache.misses == 2 * 4 * len(prompts)
