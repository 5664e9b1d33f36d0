"""The tiny pipeline as ppdiffusers 0.29.0 and PaddleNLP 3.0.0b4 write it, by hand: names, shapes, files and settings
are those of directories that they have written (``tests/interop`` compares with the real ones)."""

import json
import pickle
import re

import numpy as np
from safetensors.numpy import save_file

PPDIFFUSERS = {"_ppdiffusers_version": "0.29.0"}
PADDLENLP = {"paddlenlp_version": "3.0.0b4", "return_dict": True}
NETWORKS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
CLASSES = {
    "transformer": ["ppdiffusers", "SD3Transformer2DModel"],
    "vae": ["ppdiffusers", "AutoencoderKL"],
    "scheduler": ["ppdiffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["ppdiffusers.transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["ppdiffusers.transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["ppdiffusers.transformers", "T5EncoderModel"],
    "tokenizer": ["ppdiffusers.transformers", "CLIPTokenizer"],
    "tokenizer_2": ["ppdiffusers.transformers", "CLIPTokenizer"],
    "tokenizer_3": ["ppdiffusers.transformers", "T5Tokenizer"],
}
# PaddleNLP's own CLIP: transformers' words -> its.
_CLIP_WORDS = {
    "encoder.layers": "transformer.layers",
    "mlp.fc": "linear",
    "layer_norm": "norm",
    "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding": "positional_embedding",
    "text_projection.weight": "text_projection",
}


def is_linear(name, array):
    """Whether a tensor of the tiny networks, with torch's name, is the weight of a linear layer."""
    table = "embed" in name.split(".")[-2] and not name.startswith(("time_text_embed", "context_embedder"))
    return array.ndim == 2 and not table and "shared" not in name and "bias" not in name.split(".")[-2]


def tensors_of(network, names="ppdiffusers", norm_bias=0.0):
    """dict of numpy arrays: the state of a Paddle network with these weights.

    Args:
        names: "ppdiffusers", whose text towers have transformers' names, or "paddlenlp".
        norm_bias: what the biases of the final norms are drawn with.
    """
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    arrays = {name: np.ascontiguousarray(a.T if is_linear(name, a) else a) for name, a in arrays.items()}
    kind = type(network).__name__
    if kind == "SD3Transformer2DModel":
        width, last = network.config.caption_projection_dim, network.config.num_layers - 1
        rng = np.random.default_rng(5)
        for norm in ("norm_out", f"transformer_blocks.{last}.norm1_context"):
            arrays[f"{norm}.norm.bias"] = (norm_bias * rng.standard_normal(width)).astype("f4")
    if kind == "T5EncoderModel":
        arrays["encoder.embed_tokens.weight"] = arrays["shared.weight"].copy()
    if kind == "CLIPTextModelWithProjection" and names == "paddlenlp":
        order = sorted(_CLIP_WORDS, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, order)))
        arrays = {pattern.sub(lambda match: _CLIP_WORDS[match[0]], name): a for name, a in arrays.items()}
    return arrays


def config_of(network):
    """The settings as ``config.json``."""
    config = {name: list(v) if isinstance(v, tuple) else v for name, v in network.config.items()}
    kind = type(network).__name__
    if kind in ("SD3Transformer2DModel", "AutoencoderKL"):
        null = {"down_block_out_channels": None, "up_block_out_channels": None} if kind == "AutoencoderKL" else {}
        return {"_class_name": kind, **PPDIFFUSERS, "_name_or_path": "somewhere", **config, **null}
    more = {"dropout": 0.0} if kind.startswith("CLIP") else {"dense_act_fn": "gelu_new", "is_gated_act": True}
    return {"architectures": [kind], **PADDLENLP, **config, **more}


def write_network(directory, network, how="safe", names="ppdiffusers", norm_bias=0.0, dtype=np.float32):
    """Writes one network.

    Args:
        how: "safe" for safetensors, "pickle" for ``model_state.pdparams``, "shards" for three safetensors.
        dtype: of the weights; "bfloat16" is what numpy has of Paddle's, cut off.
    """
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config_of(network), indent=2))
    arrays = tensors_of(network, names, norm_bias)
    if dtype == "bfloat16":
        arrays = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in arrays.items()}
    else:
        arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    is_tower = "architectures" in config_of(network)
    stem, mark = ("model", "np") if is_tower else ("diffusion_paddle_model", "pd")
    if how == "safe":
        save_file(arrays, directory / f"{stem}.safetensors", {"format": mark})
    elif how == "pickle":
        if is_tower:
            arrays["StructuredToParameterName@@"] = {name: f"linear_{i}.w_0" for i, name in enumerate(arrays)}
        (directory / "model_state.pdparams").write_bytes(pickle.dumps(arrays, 4))
    else:
        files = [f"{stem}-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
        for i, file in enumerate(files):
            save_file(dict(list(arrays.items())[i::3]), directory / file, {"format": mark})
        weight_map = {name: files[i % 3] for i, name in enumerate(arrays)}
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_pipeline(directory, pipe, how="safe", names="ppdiffusers", **options):
    """Writes all of ``pipe``; ``options`` are those of :func:`write_network`."""
    directory.mkdir(parents=True)
    for name in NETWORKS:
        write_network(directory / name, getattr(pipe, name), how, names, **options)
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        write_tokenizer(directory / name, getattr(pipe, name))
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", **PPDIFFUSERS, **pipe.scheduler.config}
    (directory / "scheduler").mkdir()
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = {"_class_name": "StableDiffusion3Pipeline", "_name_or_path": "somewhere", **PPDIFFUSERS, **CLASSES}
    if names == "paddlenlp":
        index = {name: [str(e[0]).replace("ppdiffusers.", "paddlenlp."), e[1]] if isinstance(e, list) else e
                 for name, e in index.items()}  # fmt: skip
    (directory / "model_index.json").write_text(json.dumps(index))
    return directory


def write_tokenizer(directory, tokenizer):
    """The files of PaddleNLP: no tokenizer.json."""
    tokenizer.save_pretrained(directory)
    (directory / "tokenizer.json").unlink()
    tokens = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "unk", "pad")}
    tokens = {name: token for name, token in tokens.items() if token is not None}
    (directory / "special_tokens_map.json").write_text(json.dumps(tokens))
    more = {"extra_ids": 0, "additional_special_tokens": [], "sp_model_kwargs": None}
    config = {
        "errors": "replace",
        "max_len": tokenizer.model_max_length,
        "model_max_length": tokenizer.model_max_length,
        "added_tokens_decoder": {},
        "tokenizer_class": type(tokenizer).__name__,
        **tokens,
        **(more if "T5" in type(tokenizer).__name__ else {}),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
