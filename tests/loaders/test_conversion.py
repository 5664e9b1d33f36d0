"""``ppsd3.convert``: layouts into one another without loss, dtypes, shards, and nothing half-written."""

import filecmp
import json
import os
import shutil

import numpy as np
import paddle
import pytest
from helpers import ip_adapters, tiny
from helpers.originals import T5_PREFIX, read, scale_to_float8, write

import ppsd3
from ppsd3.serialization import writers
from ppsd3.serialization.tensors import cast
from ppsd3.utils.errors import CheckpointError, CheckpointFormatError, InputError

NETWORKS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


def assert_same_pipeline(path, reference, **options):
    loaded = ppsd3.StableDiffusion3Pipeline.from_pretrained(path, **options)
    for name in NETWORKS:
        ours, theirs = getattr(loaded, name).state_dict(), getattr(reference, name).state_dict()
        assert list(ours) == list(theirs)
        for key in ours:
            np.testing.assert_array_equal(ours[key].numpy(), theirs[key].numpy(), err_msg=f"{name}: {key}")
    return loaded


def assert_same_file(path, other):
    ours, theirs = read(path), read(other)
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(ours[name].array, theirs[name].array, err_msg=name)


@pytest.fixture(scope="module", params=["sd3", "sd3.5"])
def checkpoint(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint") / "diffusers"
    pipe = tiny.make_pipeline(**(tiny.SD35 if request.param == "sd3.5" else {}))
    pipe.save_pretrained(directory)
    return pipe, directory


@pytest.fixture(scope="module")
def original(checkpoint):
    return ppsd3.convert(checkpoint[1], checkpoint[1].parent / "sd3.safetensors")


def test_diffusers_to_original_and_back(checkpoint, original, tmp_path):
    names = set(read(original))
    assert "model.diffusion_model.joint_blocks.1.x_block.attn.qkv.weight" in names
    assert "first_stage_model.decoder.up.2.block.0.conv1.weight" in names
    assert "text_encoders.clip_g.transformer.text_projection.weight" in names
    back = ppsd3.convert(original, tmp_path / "back", config=checkpoint[1])
    loaded = assert_same_pipeline(back, checkpoint[0])
    assert dict(loaded.scheduler.config) == dict(checkpoint[0].scheduler.config)
    for name in NETWORKS:
        assert dict(getattr(loaded, name).config) == dict(getattr(checkpoint[0], name).config)
    assert_same_file(ppsd3.convert(back, tmp_path / "again.safetensors"), original)
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        files = os.listdir(checkpoint[1] / name)
        assert filecmp.cmpfiles(checkpoint[1] / name, tmp_path / "back" / name, files, shallow=False)[0] == files


def test_original_to_original(original, tmp_path):
    assert_same_file(ppsd3.convert(original, tmp_path / "x.safetensors"), original)


def test_paddle_layout_and_back(checkpoint, tmp_path):
    paddles = ppsd3.convert(checkpoint[1], tmp_path / "paddle", layout="ppdiffusers")
    ff = "transformer_blocks.0.ff.net.0.proj.weight"
    written = read(tmp_path / "paddle" / "transformer" / "diffusion_paddle_model.safetensors")
    np.testing.assert_array_equal(written[ff].array, checkpoint[0].transformer.state_dict()[ff].numpy().T)
    index = json.loads((tmp_path / "paddle" / "model_index.json").read_text())
    assert index["transformer"] == ["ppdiffusers", "SD3Transformer2DModel"]
    assert_same_pipeline(paddles, checkpoint[0])
    assert_same_pipeline(ppsd3.convert(paddles, tmp_path / "back"), checkpoint[0])
    assert_same_file(
        ppsd3.convert(paddles, tmp_path / "a.safetensors"), ppsd3.convert(checkpoint[1], tmp_path / "b.safetensors")
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_variant_and_shards(checkpoint, tmp_path, dtype):
    path = ppsd3.convert(checkpoint[1], tmp_path / "half", dtype=dtype, variant="half", max_shard_size="40KB")
    names = os.listdir(tmp_path / "half" / "transformer")
    assert "diffusion_pytorch_model.safetensors.index.half.json" in names and len(names) > 3
    assert json.loads((tmp_path / "half" / "text_encoder" / "config.json").read_text())["torch_dtype"] == dtype
    loaded = ppsd3.StableDiffusion3Pipeline.from_pretrained(path, variant="half")
    for name in NETWORKS:
        found = getattr(loaded, name).state_dict()
        for key, value in getattr(checkpoint[0], name).state_dict().items():
            rounded = cast(cast(value, dtype), "float32").numpy()
            np.testing.assert_array_equal(found[key].numpy(), rounded, err_msg=key)


def test_one_network(checkpoint, tmp_path):
    file = ppsd3.convert(checkpoint[1] / "transformer", tmp_path / "transformer.safetensors")
    assert all(name.startswith("model.diffusion_model.") for name in read(file))
    directory = ppsd3.convert(file, tmp_path / "transformer")
    found = ppsd3.SD3Transformer2DModel.from_pretrained(directory).state_dict()
    for key, value in checkpoint[0].transformer.state_dict().items():
        np.testing.assert_array_equal(found[key].numpy(), value.numpy())
    clip = ppsd3.convert(checkpoint[1] / "text_encoder_2", tmp_path / "clip_g.safetensors")
    assert all(name.startswith("text_encoders.clip_g.transformer.") for name in read(clip))


def test_without_a_text_encoder(checkpoint, original, tmp_path):
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    for source, more in ((checkpoint[1], {}), (original, {"config": checkpoint[1]})):
        path = ppsd3.convert(source, tmp_path / f"x{bool(more)}", **absent, **more)
        assert ppsd3.StableDiffusion3Pipeline.from_pretrained(path).text_encoder_3 is None
    file = ppsd3.convert(checkpoint[1], tmp_path / "x.safetensors", **absent)
    assert not any("t5xxl" in name for name in read(file))


def test_8_bit_floats_become_bfloat16(checkpoint, original, tmp_path):
    tensors, meant = scale_to_float8(read(original), T5_PREFIX)
    file = ppsd3.convert(
        write(tmp_path / "fp8.safetensors", tensors, ppsd3_metadata(original)), tmp_path / "x.safetensors"
    )
    written = read(file)
    for name, values in meant.items():
        assert written[name].dtype == "bfloat16"
        found = (written[name].array.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(found, values, rtol=2**-8)
    assert not any("scale" in name for name in written)


def ppsd3_metadata(path):
    from ppsd3.serialization import SafetensorsFile

    return SafetensorsFile(path).metadata


def test_memory_stays_at_one_tensor(tmp_path):
    """What is read is forgotten: no mapped array outlives its turn."""
    source = write(
        tmp_path / "x.safetensors",
        {f"joint_blocks.{i}.x_block.mlp.fc1.weight": np.zeros((8, 8), "f4") for i in range(3)},
    )
    tensor = writers.StoredTensor(
        ppsd3.serialization.SingleFile(source).source("transformer"), "transformer_blocks.1.ff.net.0.proj.weight"
    )
    assert tensor.numpy().base is None


def test_a_failure_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk")

    monkeypatch.setattr(writers.StoredTensor, "numpy", fail)
    for target in ("x.safetensors", "x"):
        with pytest.raises(OSError, match="disk"):
            ppsd3.convert(checkpoint[1], tmp_path / target)
    assert os.listdir(tmp_path) == []


def test_too_little_space(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("usage", (), {"free": 100})())
    with pytest.raises(CheckpointError, match="free"):
        ppsd3.convert(checkpoint[1], tmp_path / "x.safetensors")


def test_arguments_that_contradict_one_another(checkpoint, original, tmp_path):
    def refused(match, source, target, **options):
        with pytest.raises(InputError, match=match):
            ppsd3.convert(source, tmp_path / target, **options)

    refused("layout is 'x'", original, "a", layout="x")
    refused("does not go with the layout 'original'", checkpoint[1], "a", layout="original")
    refused("does not go with the layout 'diffusers'", checkpoint[1], "a.safetensors", layout="diffusers")
    refused("variant='fp16' is part of the names", checkpoint[1], "a.safetensors", variant="fp16")
    refused("a directory with its own configurations", checkpoint[1], "a", config=checkpoint[1])
    refused("a directory with its own vae", checkpoint[1], "a", vae="vae.safetensors")
    refused("source_variant='fp16' chooses among", original, "a", source_variant="fp16")
    refused("does not know \\['unet'\\]", original, "a", unet=None)
    refused("int8", checkpoint[1], "a", dtype="int8")
    (tmp_path / "file").write_text("x")
    refused("is a file already", checkpoint[1], "file")


def test_tokenizers_that_a_file_lacks(original, tmp_path):
    with pytest.raises(CheckpointFormatError, match=r"also needs tokenizer, tokenizer_2, tokenizer_3.*config="):
        ppsd3.convert(original, tmp_path / "x")


def test_a_quantized_network(checkpoint, tmp_path):
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(checkpoint[1]).quantize("int8")
    pipe.save_pretrained(tmp_path / "int8")
    with pytest.raises(InputError, match=r"is quantized.*Convert the model that it was made from"):
        ppsd3.convert(tmp_path / "int8", tmp_path / "x.safetensors")


def test_an_image_encoder_comes_along(checkpoint, tmp_path):
    pipe, directory = checkpoint
    paddle.seed(0)
    encoder = ppsd3.SiglipVisionModel(**ip_adapters.SIGLIP)
    processor = ppsd3.SiglipImageProcessor(**ip_adapters.PROCESSOR)
    whole = ppsd3.StableDiffusion3Pipeline(
        **{**pipe.components, "image_encoder": encoder, "feature_extractor": processor}
    )
    whole.save_pretrained(tmp_path / "whole")
    converted = ppsd3.convert(tmp_path / "whole", tmp_path / "paddle", layout="ppdiffusers")
    loaded = assert_same_pipeline(converted, pipe)
    assert loaded.feature_extractor.config == processor.config
    for name, tensor in encoder.state_dict().items():
        np.testing.assert_array_equal(loaded.image_encoder.state_dict()[name].numpy(), tensor.numpy())
    with pytest.raises(InputError, match=r"no place for the image_encoder.*image_encoder=None"):
        ppsd3.convert(tmp_path / "whole", tmp_path / "file.safetensors")
    left_out = {"image_encoder": None, "feature_extractor": None}
    assert_same_pipeline(ppsd3.convert(tmp_path / "whole", tmp_path / "without", **left_out), pipe)
    ppsd3.convert(tmp_path / "whole", tmp_path / "file.safetensors", **left_out)
    with pytest.raises(InputError, match="can only be None"):
        ppsd3.convert(directory, tmp_path / "x", image_encoder="elsewhere")
