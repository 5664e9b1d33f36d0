"""Offloading on the test device: what is there, at most and afterwards, and the pictures of the CPU."""

import numpy as np
import paddle
import pytest
from helpers import device, tiny

from ppsd3 import StableDiffusion3Pipeline, TorchGenerator

pytestmark = pytest.mark.device

KINDS = ("model", "sequential")
PLACE = f"{device.NAME}:0"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("offloading") / "saved"
    tiny.make_pipeline(**tiny.SD35).save_pretrained(path)
    return str(path)


def load(directory, on=device.NAME, **options):
    paddle.set_device(on)
    pipe = StableDiffusion3Pipeline.from_pretrained(directory, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **changed):
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np", "negative_prompt": "blue"}
    return pipe("a red circle", generator=TorchGenerator(3), **{**options, **changed}).images


@pytest.fixture(scope="module")
def expected(directory):
    picture = draw(load(directory, "cpu"))
    paddle.set_device(device.NAME)
    return picture


def enable(pipe, kind, **options):
    getattr(pipe, f"enable_{kind}_cpu_offload")(**options)
    return pipe


def size(layer):
    return sum(t.size * t.element_size() for t in {id(t): t for t in [*layer.parameters(), *layer.buffers()]}.values())


def is_there(pipe):
    """Names of the networks of which something is on the device."""
    return {
        name
        for name, part in pipe.components.items()
        if isinstance(part, paddle.nn.Layer)
        for tensor in [*part.parameters(), *part.buffers()]
        if not tensor.place.is_cpu_place()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loaded_on", ["cpu", device.NAME])
def test_pictures_are_those_of_the_cpu_and_nothing_stays(directory, expected, kind, loaded_on):
    pipe = enable(load(directory, loaded_on), kind, device=device.NAME)
    assert not is_there(pipe) and device.device_bytes() == 0
    assert str(pipe.device) == f"Place({PLACE})" and paddle.get_device() == PLACE
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)
    assert not is_there(pipe) and device.device_bytes() == 0


WIDE = {"attention_head_dim": 64, "num_attention_heads": 6, "caption_projection_dim": 384}
ONE = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 1.0, "max_sequence_length": 8}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint whose activations, of a small picture, are few beside its weights."""
    paddle.set_device("cpu")
    path = tmp_path_factory.mktemp("wide") / "saved"
    tiny.make_pipeline(**tiny.SD35, **WIDE).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_peak_is_what_is_in_use(wide, kind):
    pipe = load(wide)
    enable(pipe, kind)
    device.reset_peak()
    draw(pipe, **ONE)
    largest = size(pipe.transformer) if kind == "model" else max(map(size, pipe.transformer.transformer_blocks))
    print(kind, device.peak_bytes() / largest)
    assert 0.9 * largest < device.peak_bytes() <= 1.1 * largest
