"""What a call reads from the device: on a GPU each read waits until all work before it is done.

Steps read nothing (a step cache that measures what changes, once), and a call at most six times. Of each task,
``helpers.concerns`` asks the same.
"""

import numpy as np
import paddle
import pytest
from helpers import device, ip_adapters, tiny
from helpers.device.reads import assert_few_reads
from helpers.variety import CACHES, GUIDANCES, SAMPLERS
from PIL import Image

import ppsd3

pytestmark = pytest.mark.device


def assert_call_reads_little(pipe, per_step=0, **arguments):
    pipe.set_progress_bar_config(disable=True)
    fixed = {"height": tiny.SIDE, "width": tiny.SIDE, "negative_prompt": "blue", "output_type": "np"}

    def draw(steps):
        pipe("a circle", num_inference_steps=steps, generator=ppsd3.TorchGenerator(1), **{**fixed, **arguments})

    assert_few_reads(draw, per_step)


@pytest.fixture(scope="module")
def components():
    paddle.set_device(device.NAME)
    return tiny.make_components()


@pytest.fixture
def pipe(components):
    return ppsd3.StableDiffusion3Pipeline(**components)


@pytest.mark.parametrize("name", GUIDANCES)
def test_guidances(pipe, name):
    assert_call_reads_little(pipe, guidance=GUIDANCES[name]())


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(pipe, name):
    pipe.scheduler = SAMPLERS[name](pipe.scheduler.config)
    assert_call_reads_little(pipe)


@pytest.mark.parametrize("cache", CACHES)
def test_step_caches(pipe, cache):
    pipe.enable_cache(cache(warmup=1))
    assert_call_reads_little(pipe, per_step=0 if cache is ppsd3.TaylorCache else 1)


def test_a_known_prompt(pipe):
    """Whether the text encoders are what they were is read at once."""
    pipe.enable_prompt_cache(ppsd3.PromptCache())
    pipe("a circle", negative_prompt="blue", num_inference_steps=1, output_type="latent")
    assert_call_reads_little(pipe)


def test_weighted_prompts(pipe):
    pipe.prompt_reader = ppsd3.WeightedPrompts()
    assert_call_reads_little(pipe)


def test_a_picture_in_tiles(pipe):
    pipe.enable_vae_tiling(tile_sample_min_size=32)
    try:
        assert_call_reads_little(pipe)
    finally:
        pipe.disable_vae_tiling()


def test_an_image_prompt(tmp_path):
    pipe = tiny.make_pipeline()
    pipe.load_ip_adapter(ip_adapters.write(tmp_path / "adapter", tiny.TRANSFORMER["num_layers"]))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype="uint8"))
    for image in (picture, pipe.feature_extractor(picture).pixel_values):
        assert_call_reads_little(pipe, ip_adapter_image=image)


def test_int8():
    assert_call_reads_little(tiny.make_pipeline().quantize("int8"))
