"""SigLIP's image tower and its processor against transformers."""

import json

import numpy as np
import paddle
import pytest
from PIL import Image

from ppsd3.transformers import SiglipImageProcessor, SiglipVisionModel

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
# With a version: without the library, this directory itself would be found as a namespace package of that name.
transformers = pytest.importorskip("transformers", minversion="4.40")

BAR = 1e-5  # largest difference over largest reference value, fp32
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 30,
    "patch_size": 7,  # 4 x 4 patches, and 2 pixels that are not seen
}


def randomized(model):
    """Initial weights leave biases zero and norms one; give each tensor a say."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def assert_near(ours, theirs):
    ours, theirs = ours.numpy(), theirs.numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= BAR * np.abs(theirs).max()


def assert_same_tower(ours, theirs):
    pixels = np.random.default_rng(0).standard_normal((2, 3, 30, 30)).astype("float32")
    with torch.no_grad():
        want = theirs(torch.from_numpy(pixels), output_hidden_states=True)
    got = ours(paddle.to_tensor(pixels), output_hidden_states=True)
    assert_near(got.last_hidden_state, want.last_hidden_state)
    assert len(got.hidden_states) == len(want.hidden_states) == 4
    for mine, their in zip(got.hidden_states, want.hidden_states):
        assert_near(mine, their)
    return got, want


@pytest.mark.parametrize("changes", [{}, {"vision_use_head": False, "hidden_act": "gelu"}], ids=["head", "no head"])
def test_tower(tmp_path, changes):
    theirs = randomized(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TOWER, **changes)))
    theirs.save_pretrained(tmp_path)
    ours = SiglipVisionModel.from_pretrained(tmp_path)
    assert set(ours.state_dict()) == {name.removeprefix("vision_model.") for name in theirs.state_dict()}
    got, want = assert_same_tower(ours, theirs)
    if changes:
        assert got.pooler_output is None
    else:
        assert_near(got.pooler_output, want.pooler_output)


def test_what_we_save_transformers_loads(tmp_path):
    paddle.seed(0)
    ours = SiglipVisionModel(**TOWER)
    ours.eval()
    ours.save_pretrained(tmp_path)
    theirs = transformers.SiglipVisionModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_same_tower(ours, theirs)
    assert_same_tower(SiglipVisionModel.from_pretrained(tmp_path), theirs)


def test_the_tower_of_a_whole_siglip(tmp_path):
    text = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1}
    config = transformers.SiglipConfig(text_config={**text, "num_attention_heads": 4}, vision_config=TOWER)
    whole = randomized(transformers.SiglipModel(config))
    whole.save_pretrained(tmp_path)
    assert_same_tower(SiglipVisionModel.from_pretrained(tmp_path), whole.vision_model)


def picture(mode="RGB", size=(50, 41), seed=0):
    array = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 4), dtype="uint8")
    return Image.fromarray(array, "RGBA").convert(mode)


CONFIGURATIONS = {
    "defaults": {},
    "so400m": {"size": {"height": 384, "width": 384}},
    "bilinear, ImageNet": {
        "size": {"height": 20, "width": 30},
        "resample": 2,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    "not normalized": {"do_normalize": False},
    "not resized": {"do_resize": False},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pixel_values(tmp_path, name, mode):
    theirs = transformers.SiglipImageProcessor(**CONFIGURATIONS[name])
    theirs.save_pretrained(tmp_path)
    ours = SiglipImageProcessor.from_pretrained(tmp_path)
    pictures = [picture(mode), picture(mode, seed=1)]
    want = theirs(pictures, return_tensors="np").pixel_values
    assert np.array_equal(ours(pictures, return_tensors="np").pixel_values, want)
    assert np.array_equal(ours(pictures).pixel_values.numpy(), want)
    if mode == "RGB":  # arrays of levels are pictures too
        assert np.array_equal(ours([np.asarray(p) for p in pictures], return_tensors="np").pixel_values, want)


def test_a_processor_that_we_save(tmp_path):
    ours = SiglipImageProcessor(size={"height": 24, "width": 36}, resample=2)
    ours.save_pretrained(tmp_path)
    theirs = transformers.SiglipImageProcessor.from_pretrained(tmp_path)
    want = theirs([picture()], return_tensors="np").pixel_values
    assert np.array_equal(ours(picture(), return_tensors="np").pixel_values, want)
    assert SiglipImageProcessor.from_pretrained(tmp_path).config == ours.config
    assert "SiglipImageProcessor" in json.loads((tmp_path / "preprocessor_config.json").read_text()).values()
