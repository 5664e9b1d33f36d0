"""A tiny Stable Diffusion 3 in code: a complete pipeline that draws a 64x64 picture in a fraction of a second.

The sizes are in one place and mean the same to diffusers and transformers, so that a reference checkpoint of the same
shapes can be made there (``helpers.reference``).
"""

import json
import zlib

import numpy as np
import paddle

TRANSFORMER = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 40,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 28,
    "pos_embed_max_size": 24,
}
SD35 = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}  # what makes it an SD3.5-medium
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 16, 16),
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 64,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0}
_CLIP = {"num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 77, "vocab_size": 521}
CLIP_L = {**_CLIP, "hidden_size": 16, "intermediate_size": 24, "projection_dim": 16, "hidden_act": "quick_gelu"}
CLIP_G = {**_CLIP, "hidden_size": 12, "intermediate_size": 20, "projection_dim": 12, "hidden_act": "gelu"}
CLIP_IDS = {"bos_token_id": 519, "eos_token_id": 520, "pad_token_id": 520}
T5 = {
    "vocab_size": 160,
    "d_model": 40,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "feed_forward_proj": "gated-gelu",
}

# How large the random weights are. Larger ones in the transformer make it so steep that rounding shows in the picture.
GAINS = {"transformer": 0.4}

# 64 pixels a side: sample_size 16 times the VAE's factor 4.
SIDE = 64


def clip_vocabulary():
    """(vocab, merges) of a CLIP tokenizer: bytes, bytes that end a word, a few merges, start and end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    merges = [("r", "e"), ("re", "d</w>"), ("c", "i"), ("ci", "r"), ("c", "l"), ("cl", "e</w>"), ("cir", "cle</w>")]
    tokens = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(merge) for merge in merges]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def t5_pieces():
    """[(piece, score)] of a T5 tokenizer: letters, a space and a few words."""
    words = ["▁red", "▁blue", "▁circle", "▁square", "▁a", "▁the", "▁of"]
    letters = list("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789.,!")
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return special + [(w, -3.0) for w in words] + [(c, -6.0) for c in letters]


def write_clip_tokenizer(directory, pad_token="<|endoftext|>"):
    """``vocab.json``, ``merges.txt`` and settings, as in a published SD3 repository. CLIP-G pads with ``!``."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab, merges = clip_vocabulary()
    (directory / "vocab.json").write_text(json.dumps(vocab))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    settings = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad_token,
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def randomize(layer, seed, gain=1.0):
    """Weights large enough that prompts, seeds and settings show in the picture (fresh ones hardly do)."""
    rng = np.random.default_rng(seed)
    for name, parameter in layer.named_parameters():
        parameter.set_value(paddle.to_tensor(random_weight(name, parameter.shape, rng, gain)))
    return layer


def random_weight(name, shape, rng, gain=1.0):
    """One weight [shape] fp32 for the parameter called ``name``: norms near 1, biases small, the rest ``gain`` over
    the square root of the fan-in."""
    values = rng.standard_normal(shape).astype("float32")
    if len(shape) == 1:
        return 0.1 * values + np.float32(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    fan_in = int(np.prod(shape[1:])) if "embed" not in name or "proj" in name else 1.0
    return (gain * values / fan_in**0.5).astype("float32")


def named_weight(name, shape, gain=1.0):
    """The weight that the parameter called ``name`` has in every golden: the same in any framework and on any day.

    Norms near 1, biases small, tables of embeddings ``gain``, the rest ``gain`` over the square root of the fan-in.
    """
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype("float32")
    if len(shape) == 1:
        return 0.1 * values + np.float32(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    fan_in = 1 if "embedding" in name else np.prod(shape[1:])
    return values * np.float32(gain / fan_in**0.5)


def fill(layer, gain=1.0):
    """Sets every parameter to its ``named_weight``, and evaluation mode."""
    for name, parameter in layer.named_parameters():
        parameter.set_value(paddle.to_tensor(named_weight(name, parameter.shape, gain)))
    layer.eval()
    return layer


def make_components(seed=0, **transformer):
    """dict of the nine components, randomly weighted; ``transformer`` overrides its configuration."""
    from ppsd3 import (
        AutoencoderKL,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        T5EncoderModel,
        T5Tokenizer,
    )

    networks = {
        "transformer": SD3Transformer2DModel(**{**TRANSFORMER, **transformer}),
        "vae": AutoencoderKL(**VAE),
        "text_encoder": CLIPTextModelWithProjection(**CLIP_L, **CLIP_IDS),
        "text_encoder_2": CLIPTextModelWithProjection(**CLIP_G, **CLIP_IDS),
        "text_encoder_3": T5EncoderModel(**T5),
    }
    for offset, (name, network) in enumerate(networks.items()):
        randomize(network, seed + offset, GAINS.get(name, 1.0))
        network.eval()
    vocab, merges = clip_vocabulary()
    return {
        **networks,
        "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        "tokenizer": CLIPTokenizer(vocab, merges),
        "tokenizer_2": CLIPTokenizer(vocab, merges, tokens={"pad_token": "!"}),
        "tokenizer_3": T5Tokenizer(t5_pieces(), extra_ids=0),
    }


def make_pipeline(seed=0, **transformer):
    """A complete tiny ``StableDiffusion3Pipeline`` that shows no progress bar."""
    from ppsd3 import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline(**make_components(seed, **transformer))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(seed=0):
    """An RGB picture of the pipeline's size."""
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype="uint8"))


def mask():
    """A mask of that size: a white square."""
    from PIL import Image

    array = np.zeros((SIDE, SIDE), "uint8")
    array[10:50, 10:50] = 255
    return Image.fromarray(array)
