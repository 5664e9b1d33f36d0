"""One file with several networks, or one of them: what is found in it under which names."""

import json

import numpy as np
import pytest
from helpers.originals import Array, scale_to_float8, write

from ppsd3.serialization import SafetensorsFile, SingleFile
from ppsd3.serialization.rearranged import Piece, RearrangedCheckpoint, Recipe
from ppsd3.utils.errors import CheckpointFormatError

CLIP_L = "text_encoders.clip_l.transformer."
T5 = "text_encoders.t5xxl.transformer."


def rows(*shape, start=0):
    return np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)


def transformer(prefix="", width=4):
    """The least that is known as one: a joined projection, a final norm, and one more tensor."""
    return {
        f"{prefix}joint_blocks.0.x_block.attn.qkv.weight": rows(3 * width, width),
        f"{prefix}final_layer.adaLN_modulation.1.bias": rows(2 * width),
        f"{prefix}pos_embed": rows(1, 9, width),
    }


def test_a_joined_projection_is_cut_and_a_final_norm_swapped(tmp_path):
    source = SingleFile(write(tmp_path / "x.safetensors", transformer())).source("transformer")
    assert source.info("transformer_blocks.0.attn.to_k.weight").shape == (4, 4)
    np.testing.assert_array_equal(source.load("transformer_blocks.0.attn.to_k.weight"), rows(4, 4, start=16))
    np.testing.assert_array_equal(source.read("norm_out.linear.bias").numpy(), [4, 5, 6, 7, 0, 1, 2, 3])
    np.testing.assert_array_equal(source.load("pos_embed.pos_embed", "float16"), rows(1, 9, 4))


def test_a_cut_takes_no_memory(tmp_path):
    source = SingleFile(write(tmp_path / "x.safetensors", transformer())).source("transformer")
    assert source.load("transformer_blocks.0.attn.to_v.weight").base is not None  # the mapped file


def test_every_network_under_its_prefix(tmp_path):
    vae = {
        "first_stage_model.encoder.down.0.block.0.conv1.bias": rows(3),
        "first_stage_model.decoder.conv_in.bias": rows(2),
    }
    clip = {CLIP_L + "text_model.embeddings.token_embedding.weight": rows(5, 4)}
    t5 = {T5 + "encoder.block.0.layer.0.SelfAttention.q.weight": rows(2, 2)}
    file = SingleFile(write(tmp_path / "x.safetensors", {**transformer("model.diffusion_model."), **vae, **clip, **t5}))
    assert list(file.sources) == ["transformer", "vae", "text_encoder", "text_encoder_3"]
    assert "decoder.conv_in.bias" in file.source("vae").keys()
    assert file.source("text_encoder_3").keys() == ["encoder.block.0.layer.0.SelfAttention.q.weight"]
    with pytest.raises(CheckpointFormatError, match="no text_encoder_2; it has transformer, vae, text_encoder, text"):
        file.source("text_encoder_2")


def test_the_projection_that_clip_l_lacks_is_the_identity(tmp_path):
    tensors = {"text_model.embeddings.token_embedding.weight": rows(5, 4)}
    source = SingleFile(write(tmp_path / "x.safetensors", tensors)).source("text_encoder")
    assert source.info("text_projection.weight").shape == (4, 4)
    np.testing.assert_array_equal(source.load("text_projection.weight", "float16"), np.eye(4))


def test_a_file_with_one_clip_tower_is_told_by_its_width(tmp_path):
    def components(width, **more):
        tensors = {"text_model.embeddings.token_embedding.weight": rows(1, width), **more}
        return list(SingleFile(write(tmp_path / f"{width}.safetensors", tensors)).sources)

    assert components(768) == ["text_encoder"]
    assert components(1280) == ["text_encoder_2"]


def test_open_clip_names(tmp_path):
    tensors = {
        "transformer.resblocks.0.attn.in_proj_weight": rows(6, 2),
        "text_projection": rows(2, 3),
        "token_embedding.weight": rows(4, 2),
        "logit_scale": rows(1),
    }
    source = SingleFile(write(tmp_path / "x.safetensors", tensors)).source("text_encoder_2")
    np.testing.assert_array_equal(source.load("text_projection.weight"), rows(2, 3).T)
    layer = "text_model.encoder.layers.0.self_attn."
    np.testing.assert_array_equal(source.load(layer + "v_proj.weight"), rows(2, 2, start=8))
    assert source.info("text_projection.weight").shape == (3, 2)


def test_what_comfyui_stores_beside_the_weights_is_left(tmp_path):
    tensors = {
        T5 + "encoder.block.0.layer.0.SelfAttention.q.weight": rows(2, 2),
        "text_encoders.t5xxl.logit_scale": rows(1),
        T5 + "scaled_fp8": Array(np.zeros(2, np.uint8), "float8_e4m3fn"),
        T5 + "encoder.block.0.layer.0.SelfAttention.q.scale_input": rows(1),
    }
    source = SingleFile(write(tmp_path / "x.safetensors", tensors)).source("text_encoder_3")
    assert source.keys() == ["encoder.block.0.layer.0.SelfAttention.q.weight"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_scaled_8_bit_floats(tmp_path, dtype):
    values = np.random.standard_normal((12, 300)).astype(np.float32)
    name = "joint_blocks.0.x_block.attn.qkv.weight"
    written, meant = scale_to_float8({name: Array(values)}, "")
    source = SingleFile(write(tmp_path / "x.safetensors", written)).source("transformer")
    assert source.keys() == [f"transformer_blocks.0.attn.to_{letter}.weight" for letter in "qkv"]
    found = source.read("transformer_blocks.0.attn.to_k.weight", dtype).astype("float32").numpy()
    precision = {"float32": 0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    np.testing.assert_allclose(found, meant[name][4:8], rtol=precision, atol=1e-7 if precision else 0)
    assert np.abs(found - values[4:8]).max() < 0.15  # and they are the values that were rounded


def test_scales_of_another_form_are_refused(tmp_path):
    tensors = {
        "joint_blocks.0.x_block.attn.qkv.weight": Array(np.zeros((6, 2), np.uint8), "float8_e4m3fn"),
        "joint_blocks.0.x_block.attn.qkv.weight_scale": rows(6, 1),
    }
    with pytest.raises(CheckpointFormatError, match=r"weight_scale has the shape \[6, 1\]"):
        SingleFile(write(tmp_path / "x.safetensors", tensors))


def test_tensors_of_something_else(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointFormatError, match=r"2 tensors that belong to no part.*unet.a, unet.b"):
        SingleFile(write(path, {**transformer("model.diffusion_model."), "unet.a": rows(1), "unet.b": rows(1)}))
    with pytest.raises(CheckpointFormatError, match="is no part of Stable Diffusion 3: it begins with blocks"):
        SingleFile(write(path, {"blocks.0.weight": rows(1)}))
    with pytest.raises(CheckpointFormatError, match="not those of a transformer: blocks"):
        SingleFile(write(path, {"model.diffusion_model.blocks.0.weight": rows(1)}))
    with pytest.raises(CheckpointFormatError, match=r"no Stable Diffusion 3 has: joint_blocks\.0\.y_block"):
        SingleFile(write(path, {**transformer(), "joint_blocks.0.y_block.attn.qkv.weight": rows(3)}))


def test_rows_that_cannot_be_cut(tmp_path):
    with pytest.raises(CheckpointFormatError, match=r"qkv.bias has the shape \[4\], whose rows are not 3 equal parts"):
        SingleFile(write(tmp_path / "x.safetensors", {"joint_blocks.0.x_block.attn.qkv.bias": rows(4)}))


def test_configurations_in_the_metadata(tmp_path):
    path = write(tmp_path / "x.safetensors", transformer(), {"ppsd3_configs": json.dumps({"transformer": {"a": 1}})})
    assert SingleFile(path).configs == {"transformer": {"a": 1}}
    with pytest.raises(CheckpointFormatError, match="not valid JSON"):
        SingleFile(write(path, transformer(), {"ppsd3_configs": "{"}))


def test_rearrangements_of_rearrangements(tmp_path):
    file = SafetensorsFile(write(tmp_path / "x.safetensors", {"a": rows(2, 6), "b": rows(2, 6, start=100)}))
    turned = RearrangedCheckpoint(
        file, {"t": Recipe((Piece("a"),), "transposed"), "c": Recipe((Piece("a"), Piece("b")))}
    )
    again = RearrangedCheckpoint(
        turned, {"half": Recipe((Piece("t", 1, 2),)), "conv": Recipe((Piece("c"),), "convolution")}
    )
    np.testing.assert_array_equal(again.load("half"), rows(2, 6).T[3:])
    assert again.info("half").shape == (3, 2) and again.info("conv").shape == (4, 6, 1, 1)
    np.testing.assert_array_equal(again.load("conv")[2:, :, 0, 0], rows(2, 6, start=100))
