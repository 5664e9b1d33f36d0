"""Names of original files: each network's there and back, on full-size lists, and what the tables say in words."""

import paddle
import pytest

from ppsd3 import AutoencoderKL, CLIPTextModelWithProjection, SD3Transformer2DModel
from ppsd3.serialization.rearranged import Piece
from ppsd3.serialization.sd3_keys import PADDLENLP_CLIP, find_layout, original_table, to_diffusers, to_original
from ppsd3.utils.errors import CheckpointFormatError

# The table of positions is a buffer, which takes memory even in an unallocated model: small here.
SD3_MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 6}
SD35_MEDIUM = {
    **SD3_MEDIUM,
    "pos_embed_max_size": 12,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
SD35_LARGE = {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 6,
    "qk_norm": "rms_norm",
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
OPEN_CLIP = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 32, "projection_dim": 64}


def names_of(class_, config):
    with paddle.LazyGuard():
        return list(class_(**config).state_dict())


def controlnet_names():
    """Of Stability's ControlNets for SD3.5-large, in diffusers' words."""
    linears = [f"time_text_embed.{part}_embedder.linear_{n}" for part in ("timestep", "text") for n in (1, 2)]
    block = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear")
    linears += [f"transformer_blocks.{i}.{part}" for i in range(19) for part in block]
    linears += ["pos_embed_input.proj", *(f"controlnet_blocks.{i}" for i in range(19))]
    return [f"{name}.{kind}" for name in linears for kind in ("weight", "bias")]


NETWORKS = {
    "SD3-medium": ("transformer", lambda: names_of(SD3Transformer2DModel, SD3_MEDIUM)),
    "SD3.5-medium": ("transformer", lambda: names_of(SD3Transformer2DModel, SD35_MEDIUM)),
    "SD3.5-large": ("transformer", lambda: names_of(SD3Transformer2DModel, SD35_LARGE)),
    "ControlNet of SD3.5-large": ("controlnet", controlnet_names),
    "VAE": ("vae", lambda: names_of(AutoencoderKL, VAE)),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_there_and_back(network):
    kind, names = NETWORKS[network][0], NETWORKS[network][1]()
    table = original_table(kind)
    original = to_original(names, table, "x")
    assert find_layout(original) == (kind, table)
    back = to_diffusers(original, table, "x")
    assert sorted(back) == sorted(names)
    for name, recipe in back.items():  # each tensor comes back from where it went
        for piece in recipe.pieces:
            sources = original[piece.name].pieces
            assert name in {source.name for source in sources}
            if piece.count == len(sources) and len({s.name for s in sources}) == len(sources):
                assert sources[piece.index].name == name


def test_open_clip_there_and_back():
    names = names_of(CLIPTextModelWithProjection, OPEN_CLIP)
    table = next(t for k, t in [find_layout(["transformer.resblocks.0.ln_1.weight"])] if k == "clip")
    original = to_original(names, table, "x")
    assert "transformer.resblocks.31.attn.in_proj_bias" in original and "positional_embedding" in original
    assert original["text_projection"].form == "transposed"
    assert sorted(to_diffusers(original, table, "x")) == sorted(names)


def test_what_the_tables_say():
    names = names_of(SD3Transformer2DModel, SD35_MEDIUM)
    original = to_original(names, original_table("transformer"), "x")
    qkv = original["joint_blocks.3.x_block.attn2.qkv.weight"]
    assert [piece.name for piece in qkv.pieces] == [f"transformer_blocks.3.attn2.to_{c}.weight" for c in "qkv"]
    added = original["joint_blocks.23.context_block.attn.qkv.bias"]
    assert [piece.name for piece in added.pieces] == [f"transformer_blocks.23.attn.add_{c}_proj.bias" for c in "qkv"]
    for name, source in (
        ("final_layer.adaLN_modulation.1.weight", "norm_out.linear.weight"),
        ("joint_blocks.23.context_block.adaLN_modulation.1.bias", "transformer_blocks.23.norm1_context.linear.bias"),
    ):
        assert original[name].pieces == (Piece(source, 1, 2), Piece(source, 0, 2))
    inner = original["joint_blocks.22.context_block.adaLN_modulation.1.bias"]
    assert inner.pieces == (Piece("transformer_blocks.22.norm1_context.linear.bias"),)
    for name in (
        "pos_embed",
        "x_embedder.proj.weight",
        "t_embedder.mlp.2.bias",
        "joint_blocks.0.x_block.attn.ln_k.weight",
    ):
        assert name in original
    assert not any(
        "context_block.mlp" in name or "context_block.attn.proj" in name for name in original if ".23." in name
    )


def test_what_the_vae_table_says():
    original = to_original(names_of(AutoencoderKL, VAE), original_table("vae"), "x")
    first_up = original["decoder.up.3.block.2.conv1.weight"]
    assert first_up.pieces == (Piece("decoder.up_blocks.0.resnets.2.conv1.weight"),)
    assert original["decoder.mid.attn_1.proj_out.weight"].form == "convolution"
    assert original["decoder.mid.attn_1.proj_out.bias"].form == "same"
    back = to_diffusers(original, original_table("vae"), "x")
    assert back["encoder.mid_block.attentions.0.to_q.weight"].form == "linear"
    assert (
        back["decoder.up_blocks.3.resnets.0.conv_shortcut.bias"].pieces[0].name
        == "decoder.up.0.block.0.nin_shortcut.bias"
    )


def test_a_name_that_no_table_has():
    names = [*names_of(SD3Transformer2DModel, {"num_layers": 1}), "transformer_blocks.0.attn3.to_q.weight"]
    with pytest.raises(CheckpointFormatError, match=r"some file.*attn3\.to_q\.weight"):
        to_original(names, original_table("transformer"), "some file")


def test_a_part_of_a_joined_tensor_is_missing():
    names = [
        n for n in names_of(SD3Transformer2DModel, {"num_layers": 1}) if n != "transformer_blocks.0.attn.to_k.bias"
    ]
    with pytest.raises(CheckpointFormatError, match=r"2 of the 3 .*joint_blocks\.0\.x_block\.attn\.qkv\.bias"):
        to_original(names, original_table("transformer"), "some file")


def test_paddlenlp_clip_there_and_back():
    names = names_of(CLIPTextModelWithProjection, OPEN_CLIP)
    there = to_original(names, PADDLENLP_CLIP, "x")
    assert len(there) == len(names) and not set(there) & set(names)
    assert find_layout(there) == ("clip", PADDLENLP_CLIP)
    assert {"text_projection", "text_model.transformer.layers.31.linear1.weight", "text_model.ln_final.bias"} <= set(
        there
    )
    back = to_diffusers(there, PADDLENLP_CLIP, "x")
    assert {name: there[recipe.pieces[0].name].pieces[0].name for name, recipe in back.items()} == dict(
        zip(names, names)
    )
    assert original_table("clip", names) != PADDLENLP_CLIP  # what a single file has
    with pytest.raises(CheckpointFormatError, match="linear3"):
        to_diffusers([*there, "text_model.transformer.layers.0.linear3.weight"], PADDLENLP_CLIP, "x")
