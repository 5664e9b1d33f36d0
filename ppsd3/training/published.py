"""Configurations of the published models, for what needs sizes without weights: estimates and measurements."""

from __future__ import annotations

from typing import Any

Configurations = dict[str, dict[str, Any]]  # component -> constructor arguments

_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_LARGE = {
    **_MEDIUM,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
_BLOCKS = 4
_BESIDE: Configurations = {  # the VAE and the text encoders, the same in all of them
    "vae": {
        "down_block_types": ("DownEncoderBlock2D",) * _BLOCKS,
        "up_block_types": ("UpDecoderBlock2D",) * _BLOCKS,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "sample_size": 1024,
    },
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
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
}

PUBLISHED: dict[str, Configurations] = {
    "SD3-medium": {"transformer": _MEDIUM, **_BESIDE},
    "SD3.5-medium": {
        "transformer": {
            **_MEDIUM,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(13)),
        },
        **_BESIDE,
    },
    "SD3.5-large": {"transformer": _LARGE, **_BESIDE},
}
