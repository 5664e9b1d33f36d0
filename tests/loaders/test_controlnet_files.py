"""ControlNets in single files and through conversion."""

import numpy as np
import pytest
from helpers import tiny
from helpers.originals import read, write

import ppsd3
from ppsd3.modeling_utils import to_be_filled
from ppsd3.serialization.sd3_configs import infer_config, published_name
from ppsd3.serialization.tensor_dict import TensorDict
from ppsd3.utils.errors import CheckpointFormatError

# What Stability AI published for SD3.5-large, with fewer blocks and heads.
WITHOUT_TEXT = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    num_layers=3,
    attention_head_dim=64,
    num_attention_heads=2,
    joint_attention_dim=None,
    caption_projection_dim=2048,
    pooled_projection_dim=192,
    out_channels=16,
    pos_embed_max_size=None,
    pos_embed_type=None,
    use_pos_embed=False,
    force_zeros_for_pooled_projection=False,
)
JOINT = {**tiny.TRANSFORMER, "num_layers": 2, "qk_norm": "rms_norm"}


def make(config):
    return tiny.fill(ppsd3.SD3ControlNetModel(**config))


def assert_same(net, other):
    assert dict(net.config) == dict(other.config)
    ours, theirs = net.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name].numpy(), theirs[name].numpy(), err_msg=name)


@pytest.fixture
def original(tmp_path):
    """A file as Stability AI publishes it: no prefix, no configuration."""
    make(WITHOUT_TEXT).save_pretrained(tmp_path / "net")
    ppsd3.convert(tmp_path / "net", tmp_path / "converted.safetensors")
    tensors = {name[len("control_model.") :]: t for name, t in read(tmp_path / "converted.safetensors").items()}
    return write(tmp_path / "sd3.5_large_controlnet_canny.safetensors", tensors)


def test_original_file(original):
    names = set(read(original))
    assert "transformer_blocks.2.attn.qkv.weight" in names and "transformer_blocks.0.mlp.fc1.bias" in names
    assert_same(ppsd3.SD3ControlNetModel.from_single_file(original), make(WITHOUT_TEXT))


def test_original_and_back(original, tmp_path):
    ppsd3.convert(original, tmp_path / "directory")
    assert_same(ppsd3.SD3ControlNetModel.from_pretrained(tmp_path / "directory"), make(WITHOUT_TEXT))
    ppsd3.convert(tmp_path / "directory", tmp_path / "again.safetensors")
    ours, theirs = read(tmp_path / "again.safetensors"), read(original)
    assert sorted(ours) == sorted("control_model." + name for name in theirs)
    for name in theirs:
        np.testing.assert_array_equal(ours["control_model." + name].array, theirs[name].array)


def test_paddle_layout(original, tmp_path):
    ppsd3.convert(original, tmp_path / "paddle", layout="ppdiffusers")
    assert_same(ppsd3.SD3ControlNetModel.from_pretrained(tmp_path / "paddle"), make(WITHOUT_TEXT))


def test_with_text_it_keeps_its_names(tmp_path):
    make(JOINT).save_pretrained(tmp_path / "net")
    ppsd3.convert(tmp_path / "net", tmp_path / "net.safetensors")
    assert "control_model.context_embedder.weight" in read(tmp_path / "net.safetensors")
    assert_same(ppsd3.SD3ControlNetModel.from_single_file(tmp_path / "net.safetensors"), make(JOINT))


def test_with_text_shapes_do_not_say_all(tmp_path):
    make(JOINT).save_pretrained(tmp_path / "net")
    file = tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    alone = write(tmp_path / "net.safetensors", read(file))
    with pytest.raises(CheckpointFormatError, match="config="):
        ppsd3.SD3ControlNetModel.from_single_file(alone)
    assert_same(ppsd3.SD3ControlNetModel.from_single_file(alone, config=tmp_path / "net"), make(JOINT))
    assert_same(ppsd3.SD3ControlNetModel.from_single_file(file), make(JOINT))  # there is its config.json


# What InstantX and, with a channel for the mask, Alimama published for SD3-medium, with fewer blocks and heads.
WITH_TEXT = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    num_layers=2,
    attention_head_dim=64,
    num_attention_heads=2,
    joint_attention_dim=192,
    caption_projection_dim=128,
    pooled_projection_dim=192,
    out_channels=16,
    pos_embed_max_size=12,
)


@pytest.mark.parametrize("extra", [0, 1], ids=["InstantX", "Alimama"])
def test_with_text_as_published(tmp_path, extra, caplog):
    net = make({**WITH_TEXT, "extra_conditioning_channels": extra})
    assert net.config.force_zeros_for_pooled_projection
    net.save_pretrained(tmp_path / "net")
    file = write(tmp_path / "net.safetensors", read(tmp_path / "net" / "diffusion_pytorch_model.safetensors"))
    assert_same(ppsd3.SD3ControlNetModel.from_single_file(file), net)
    assert "net.safetensors" in caplog.text and "force_zeros_for_pooled_projection=True" in caplog.text
    whole = ppsd3.convert(file, tmp_path / "again")
    assert_same(ppsd3.SD3ControlNetModel.from_pretrained(whole), net)
    own = ppsd3.SD3ControlNetModel.from_single_file(file, force_zeros_for_pooled_projection=False)
    assert not own.config.force_zeros_for_pooled_projection


@pytest.mark.parametrize(
    "layers, extra, name", [(12, 0, "InstantX for SD3-medium"), (23, 1, "Alimama for inpainting"), (19, 0, "Stability")]
)
def test_published_sizes(layers, extra, name):
    config = dict(num_layers=layers, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192)
    config["extra_conditioning_channels"] = extra
    if name == "Stability":
        config = {**WITHOUT_TEXT, "num_layers": 19, "num_attention_heads": 38, "pooled_projection_dim": 2048}
    with to_be_filled():
        net = ppsd3.SD3ControlNetModel(**config)
    inferred = infer_config("controlnet", TensorDict(net.state_dict()))
    for key, value in inferred.items():
        assert net.config[key] == value, key
    assert name in published_name("controlnet", inferred)


def test_pipeline_of_files(tmp_path):
    pipe = tiny.make_pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    ppsd3.convert(tmp_path / "pipe", tmp_path / "sd3.safetensors")
    make(JOINT).save_pretrained(tmp_path / "net")
    parts = dict(config=tmp_path / "pipe", controlnet=str(tmp_path / "net"))
    loaded = ppsd3.StableDiffusion3ControlNetPipeline.from_single_file(tmp_path / "sd3.safetensors", **parts)
    assert_same(loaded.controlnet, make(JOINT))
    with pytest.raises(CheckpointFormatError, match="controlnet="):
        ppsd3.StableDiffusion3ControlNetPipeline.from_single_file(
            tmp_path / "sd3.safetensors", config=tmp_path / "pipe"
        )
    # and the pipeline with it, as one file and as a directory again
    loaded.save_pretrained(tmp_path / "control")
    ppsd3.convert(tmp_path / "control", tmp_path / "control.safetensors")
    back = ppsd3.convert(tmp_path / "control.safetensors", tmp_path / "back", config=tmp_path / "pipe")
    again = ppsd3.DiffusionPipeline.from_pretrained(back)
    assert type(again) is ppsd3.StableDiffusion3ControlNetPipeline
    assert_same(again.controlnet, make(JOINT))


def test_several_are_not_converted_by_half(tmp_path):
    pipe = tiny.make_pipeline()
    several = ppsd3.StableDiffusion3ControlNetPipeline.from_pipe(pipe, controlnet=[make(JOINT), make(JOINT)])
    several.save_pretrained(tmp_path / "two")
    with pytest.raises(CheckpointFormatError, match="SD3MultiControlNetModel"):
        ppsd3.convert(tmp_path / "two", tmp_path / "two.safetensors")
