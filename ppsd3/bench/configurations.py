"""The configurations that are measured: SD3-medium's, and tiny ones for tests of the benches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..training.published import PUBLISHED, Configurations

# SD3-medium and its text encoders as published; a bench chooses the number of layers of the transformer and of T5.
MEDIUM = PUBLISHED["SD3-medium"]

TINY: Configurations = {
    "transformer": {
        **MEDIUM["transformer"],
        "sample_size": 16,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 40,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 28,
        "pos_embed_max_size": 24,
    },
    "vae": {
        **MEDIUM["vae"],
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
    },
    "text_encoder": {
        **MEDIUM["text_encoder"],
        "vocab_size": 521,
        "hidden_size": 16,
        "intermediate_size": 24,
        "projection_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": 519,
        "eos_token_id": 520,
    },
    "text_encoder_2": {
        **MEDIUM["text_encoder_2"],
        "vocab_size": 521,
        "hidden_size": 12,
        "intermediate_size": 20,
        "projection_dim": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": 519,
        "eos_token_id": 520,
    },
    "text_encoder_3": {
        **MEDIUM["text_encoder_3"],
        "vocab_size": 160,
        "d_model": 40,
        "d_kv": 8,
        "d_ff": 24,
        "num_heads": 4,
    },
}

# Component -> class of ppsd3, which has the same name in diffusers or transformers.
CLASSES = {
    "transformer": "SD3Transformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder_3": "T5EncoderModel",
}


def width(transformer: Mapping[str, Any]) -> int:
    """D of a transformer's configuration."""
    return transformer["attention_head_dim"] * transformer["num_attention_heads"]
