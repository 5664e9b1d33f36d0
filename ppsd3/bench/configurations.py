"""The configurations that are measured: SD3-medium's, and tiny ones for tests of the benches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Configurations = dict[str, dict[str, Any]]  # component -> constructor arguments

_BLOCKS = 4
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * _BLOCKS,
    "up_block_types": ("UpDecoderBlock2D",) * _BLOCKS,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

# SD3-medium and its text encoders as published, but for the number of layers of the transformer and T5, which a bench
# chooses.
MEDIUM: Configurations = {
    "transformer": {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    },
    "vae": {**_VAE, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 1024},
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    },
    "text_encoder_2": {
        "vocab_size": 49408,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "projection_dim": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
    },
    "text_encoder_3": {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
}

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
        **_VAE,
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
