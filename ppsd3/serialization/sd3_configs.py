"""Infers a network's configuration from the shapes of its weights, for files without a configuration.

Names are diffusers'. What shapes do not tell is the same in all published models of Stable Diffusion 3 and 3.5, and is
written here: heads of 64, the VAE's scaling, CLIP's activation functions, the shift of the schedule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from ..utils.errors import CheckpointFormatError
from ..utils.logging import get_logger
from ..utils.types import Shape
from .layout import declared_layout
from .source import TensorSource

HEAD_DIM = 64
_BLOCKS = "transformer_blocks."
SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0}  # of SD3-medium, SD3.5-medium, -large and -large-turbo alike


def infer_config(component: str, source: TensorSource) -> dict[str, Any]:
    """The constructor's arguments of the network ``component`` with the tensors of ``source``.

    Args:
        component: "transformer", "controlnet", "vae", "text_encoder", "text_encoder_2" or "text_encoder_3".
        source: with diffusers' names.

    Raises:
        CheckpointFormatError: a needed tensor is missing, or the shapes are of no published model.
    """
    return _INFERENCES[component](_Shapes(source))


# A linear layer of every network whose output is wider than its input, and tables, which are matrices but no layers.
_WIDENS = re.compile(r".*\.0\.(ff\.net\.0\.proj|mlp\.fc1|layer\.1\.DenseReluDense\.wi(_0)?)\.weight")
_TABLE = re.compile(r".*(embedding|shared|embed_tokens|relative_attention_bias)\.weight")


class _Shapes:
    """Shapes by name, as torch has them, and which numbers occur in names."""

    def __init__(self, source: TensorSource) -> None:
        self.path, self._source = source.path, source
        self._names = set(source.keys())
        wide = [source.info(name).shape for name in self._names if _WIDENS.fullmatch(name)]
        is_turned = any(len(shape) == 2 and shape[0] < shape[1] for shape in wide)
        self._is_paddle = is_turned and declared_layout(source) == "paddle"

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Shape:
        if name not in self._names:
            raise CheckpointFormatError(
                f"{self.path} has no {name}, from which the model's size is known. Download it again, or pass "
                "`config=`, a directory in diffusers format."
            )
        shape = self._source.info(name).shape
        is_linear = len(shape) == 2 and not _TABLE.fullmatch(name)
        return shape[::-1] if self._is_paddle and is_linear else shape

    def numbers(self, before: str, after: str = ".") -> list[int]:
        """Sorted numbers n for which a name begins with ``before + n + after``."""
        rests = (name[len(before) :].split(".", 1) for name in self._names if name.startswith(before))
        found = {int(rest[0]) for rest in rests if rest[0].isdigit() and ("." + "".join(rest[1:])).startswith(after)}
        return sorted(found)

    def refuse(self, what: str) -> NoReturn:
        raise CheckpointFormatError(
            f"{self.path}: {what}, which no published Stable Diffusion 3 has, so that its shapes do not say all. Pass "
            "`config=`, a directory in diffusers format with the configurations."
        )


def _transformer(shapes):
    width, in_channels, patch, _ = shapes["pos_embed.proj.weight"]
    blocks = _BLOCKS
    normed = f"{blocks}0.attn.norm_q.weight" in shapes
    head_dim = shapes[f"{blocks}0.attn.norm_q.weight"][0] if normed else HEAD_DIM
    if width % head_dim:
        shapes.refuse(f"the transformer has the width {width}, no multiple of {head_dim}")
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": in_channels,
        "num_layers": len(shapes.numbers(blocks)),
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": width,
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "out_channels": shapes["proj_out.weight"][0] // patch**2,
        "pos_embed_max_size": math.isqrt(shapes["pos_embed.pos_embed"][1]),
        "dual_attention_layers": tuple(shapes.numbers(blocks, ".attn2.")),
        "qk_norm": "rms_norm" if normed else None,
    }


def _controlnet(shapes):
    """Stability's for SD3.5-large: image tokens alone, positions from the transformer. InstantX's and Alimama's for
    SD3-medium: blocks that read text, positions of their own."""
    width, channels, patch, _ = shapes["pos_embed_input.proj.weight"]
    blocks = len(shapes.numbers("controlnet_blocks."))
    if width % HEAD_DIM:
        shapes.refuse(f"the ControlNet has the width {width}, no multiple of {HEAD_DIM}")
    config = {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "num_layers": blocks,
        "attention_head_dim": HEAD_DIM,
        "num_attention_heads": width // HEAD_DIM,
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "out_channels": 16,
    }
    reads_text, embeds = "context_embedder.weight" in shapes, "pos_embed.proj.weight" in shapes
    if reads_text != embeds:
        shapes.refuse(
            f"the ControlNet has blocks {'with' if reads_text else 'without'} text and {int(embeds)} pos_embed"
        )
    if not reads_text:
        return {
            **config,
            "joint_attention_dim": None,
            "caption_projection_dim": 2048,
            "pos_embed_max_size": None,
            "pos_embed_type": None,
            "use_pos_embed": False,
            "force_zeros_for_pooled_projection": False,
        }
    if f"{_BLOCKS}0.attn.norm_q.weight" in shapes or shapes.numbers(_BLOCKS, ".attn2."):
        shapes.refuse("the ControlNet has blocks of SD3.5 that read text")
    in_channels = shapes["pos_embed.proj.weight"][1]
    if not in_channels <= channels <= in_channels + 1:
        shapes.refuse(f"the ControlNet reads {channels} channels beside latents of {in_channels}")
    get_logger(__name__).warning(
        f"{shapes.path}: this ControlNet is read as InstantX and Alimama train them, without pooled text "
        "(force_zeros_for_pooled_projection=True), which no shape tells. Pass config= for another."
    )
    return {
        **config,
        "in_channels": in_channels,
        "extra_conditioning_channels": channels - in_channels,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": width,
        "pos_embed_max_size": math.isqrt(shapes["pos_embed.pos_embed"][1]),
        "force_zeros_for_pooled_projection": True,
    }


def _vae(shapes):
    down = shapes.numbers("encoder.down_blocks.")
    widths = tuple(shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in down)
    latent_channels = shapes["decoder.conv_in.weight"][1]
    if latent_channels != 16 or any(width % 32 for width in widths):
        shapes.refuse(f"the VAE has {latent_channels} latent channels and blocks of widths {list(widths)}")
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ("DownEncoderBlock2D",) * len(down),
        "up_block_types": ("UpDecoderBlock2D",) * len(down),
        "block_out_channels": widths,
        "layers_per_block": len(shapes.numbers("encoder.down_blocks.0.resnets.")),
        "latent_channels": latent_channels,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
    }


def _clip(hidden_act, pad_token_id):
    def infer(shapes):
        vocab, width = shapes["text_model.embeddings.token_embedding.weight"]
        if width % HEAD_DIM:
            shapes.refuse(f"the text encoder has the width {width}, no multiple of {HEAD_DIM}")
        return {
            "vocab_size": vocab,
            "hidden_size": width,
            "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
            "projection_dim": shapes["text_projection.weight"][0],
            "num_hidden_layers": len(shapes.numbers("text_model.encoder.layers.")),
            "num_attention_heads": width // HEAD_DIM,
            "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
            "hidden_act": hidden_act,
            "bos_token_id": vocab - 2,
            "eos_token_id": vocab - 1,
            "pad_token_id": vocab - 1 if pad_token_id is None else pad_token_id,
        }

    return infer


def _t5(shapes):
    table = "shared.weight" if "shared.weight" in shapes else "encoder.embed_tokens.weight"
    block = "encoder.block.0.layer."
    buckets, heads = shapes[f"{block}0.SelfAttention.relative_attention_bias.weight"]
    gated = f"{block}1.DenseReluDense.wi_0.weight" in shapes
    return {
        "vocab_size": shapes[table][0],
        "d_model": shapes[table][1],
        "d_kv": shapes[f"{block}0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"{block}1.DenseReluDense.wo.weight"][1],
        "num_layers": len(shapes.numbers("encoder.block.")),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }


_INFERENCES = {
    "transformer": _transformer,
    "controlnet": _controlnet,
    "vae": _vae,
    "text_encoder": _clip("quick_gelu", None),
    "text_encoder_2": _clip("gelu", 0),
    "text_encoder_3": _t5,
}

# Component -> sizes that distinguish published networks -> their name.
_PUBLISHED = {
    "transformer": {
        (24, 24, None, ()): "SD3-medium",
        (24, 24, "rms_norm", tuple(range(13))): "SD3.5-medium",
        (38, 38, "rms_norm", ()): "SD3.5-large or SD3.5-large-turbo",
    },
    "controlnet": {
        (19, 38): "ControlNet of Stability AI for SD3.5-large",
        (12, 24): "ControlNet of InstantX for SD3-medium",
        (23, 24): "ControlNet of Alimama for inpainting with SD3-medium",
    },
    "vae": {((128, 256, 512, 512), 16): "VAE of Stable Diffusion 3"},
    "text_encoder": {(768, 12): "CLIP-L"},
    "text_encoder_2": {(1280, 32): "OpenCLIP bigG"},
    "text_encoder_3": {(4096, 24): "T5-XXL"},
}
_SIZES = {
    "transformer": ("num_layers", "num_attention_heads", "qk_norm", "dual_attention_layers"),
    "controlnet": ("num_layers", "num_attention_heads"),
    "vae": ("block_out_channels", "latent_channels"),
    "text_encoder": ("hidden_size", "num_hidden_layers"),
    "text_encoder_2": ("hidden_size", "num_hidden_layers"),
    "text_encoder_3": ("d_model", "num_layers"),
}


def published_name(component: str, config: Mapping[str, Any]) -> str | None:
    """The published model whose ``component`` has this ``config``, e.g. "SD3.5-medium"; None if there is none."""
    sizes = [config.get(key) for key in _SIZES[component]]
    sizes = tuple(tuple(size) if isinstance(size, list) else size for size in sizes)
    return next((name for known, name in _PUBLISHED[component].items() if known == sizes), None)
