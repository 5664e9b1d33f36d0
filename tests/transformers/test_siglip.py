"""SigLIP's image tower and its processor: shapes, files, what is refused."""

import json

import numpy as np
import paddle
import pytest
from PIL import Image

from ppsd3.serialization.writers import write_tensors
from ppsd3.transformers import SiglipImageProcessor, SiglipVisionModel
from ppsd3.utils.errors import ConfigError, InputError

TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
}


def tiny(**overrides):
    paddle.seed(0)
    model = SiglipVisionModel(**{**TINY, **overrides})
    model.eval()
    return model


def pixels(seed=0):
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal((2, 3, 12, 12)).astype("float32"))


def test_shapes_and_names():
    out = tiny()(pixels(), output_hidden_states=True)
    assert [state.shape for state in out.hidden_states] == [[2, 9, 16]] * 3
    assert out[0] is out.last_hidden_state and out.pooler_output.shape == [2, 16]
    assert tiny(vision_use_head=False)(pixels()).to_tuple()[1:] == ()
    names = set(tiny().state_dict())
    assert {"embeddings.position_embedding.weight", "head.attention.in_proj_weight", "head.probe"} <= names
    assert len(names) == 3 + 2 * 16 + 2 + 11


def test_files_with_the_names_of_transformers_4(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    tensors = {f"vision_model.{name}": tensor for name, tensor in model.state_dict().items()}
    with open(tmp_path / "model.safetensors", "wb") as file:
        write_tensors(file, {**tensors, "text_model.head.weight": paddle.zeros([2]), "logit_scale": paddle.zeros([1])})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": config}))
    loaded = SiglipVisionModel.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert np.array_equal(loaded(pixels())[1].numpy(), model(pixels())[1].numpy())


def test_weights_held_in_16_bits(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    held = SiglipVisionModel.from_pretrained(tmp_path, storage_dtype="float16")
    difference = np.abs(held(pixels())[0].numpy() - model(pixels())[0].numpy()).max()
    assert 0 < difference < 1e-2


@pytest.mark.parametrize("shape", [[2, 3, 12, 16], [1, 4, 12, 12], [3, 12, 12]])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match=r"takes \[B, 3, 12, 12\]"):
        tiny()(paddle.zeros(shape))


def test_wrong_configurations_are_refused():
    with pytest.raises(ConfigError, match="does not divide"):
        tiny(num_attention_heads=3)
    with pytest.raises(ConfigError, match="hidden_act"):
        tiny(hidden_act="tanhh")
    model = tiny(attention_dropout=0.1)
    model.train()
    with pytest.raises(InputError, match="attention_dropout"):
        model(pixels())


def test_pictures_of_every_kind():
    processor = SiglipImageProcessor(size={"height": 12, "width": 12})
    levels = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype="uint8")
    expected = processor(Image.fromarray(levels)).pixel_values
    assert expected.shape == [1, 3, 12, 12] and expected.dtype == paddle.float32
    for same in (levels, levels[None], [levels], levels / 255.0, [Image.fromarray(levels)]):
        assert np.array_equal(processor(same).pixel_values.numpy(), expected.numpy())
    white = processor(Image.new("L", (3, 5), 255), return_tensors="np").pixel_values
    assert white.shape == (1, 3, 12, 12) and (white == 1).all()
    grey = [levels[..., 0], Image.fromarray(levels[..., 0]), Image.fromarray(levels[..., 0].astype("uint16") * 257)]
    same = processor(grey, return_tensors="np").pixel_values
    assert np.array_equal(same[0], same[1]) and np.array_equal(same[1], same[2])


WRONG_PICTURES = {
    "none": ([], "Pass at least one"),
    "text": ("a.png", "str"),
    "tensor": (paddle.zeros([3, 4, 4]), "Tensor|shape"),
    "channels first": (np.zeros([3, 4, 4]), "np.moveaxis"),
    "floats of levels": (np.full([4, 4, 3], 200.0), "floats are in"),
    "integers": (np.zeros([4, 4, 3], "int64"), "int64"),
}


@pytest.mark.parametrize("name", WRONG_PICTURES)
def test_wrong_pictures_are_refused(name):
    images, message = WRONG_PICTURES[name]
    with pytest.raises(InputError, match=message):
        SiglipImageProcessor()(images)


def test_wrong_settings_of_the_processor_are_refused():
    with pytest.raises(ConfigError, match="height"):
        SiglipImageProcessor(size={"shortest_edge": 224})
    with pytest.raises(ConfigError, match="crop"):
        SiglipImageProcessor.from_config({"do_center_crop": True})
    with pytest.raises(ConfigError, match="image_mean"):
        SiglipImageProcessor.from_config({"image_meen": [0.5]})
    with pytest.raises(InputError, match="return_tensors"):
        SiglipImageProcessor()(Image.new("RGB", (4, 4)), return_tensors="pt")
    with pytest.raises(InputError, match="channels"):
        SiglipImageProcessor(do_convert_rgb=False)(Image.new("L", (4, 4)))
    with pytest.raises(InputError, match="differ in size"):
        SiglipImageProcessor(do_resize=False)([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))])


def test_settings_that_transformers_leaves_empty():
    processor = SiglipImageProcessor.from_config({"do_center_crop": None, "crop_size": None, "do_convert_rgb": None})
    assert processor.config.do_convert_rgb is True
