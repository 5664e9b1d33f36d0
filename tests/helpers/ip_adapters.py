"""A random IP-adapter for the tiny transformers of ``helpers.tiny``, as a file would hold it, and its image encoder."""

import numpy as np

from . import tiny

SIGLIP = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
PROCESSOR = {"size": {"height": SIGLIP["image_size"], "width": SIGLIP["image_size"]}}
FILE = "ip-adapter.safetensors"

HIDDEN, QUERIES, TIMESTEPS, DEPTH = 16, 5, 12, 4  # diffusers reads no other depth


def tensors(attentions, width=32, head_dim=8, embed_dim=SIGLIP["hidden_size"], seed=0, depth=DEPTH):
    """dict: name in the file -> array, for a transformer with so many attentions of that width."""
    shapes = {
        "image_proj.latents": (1, QUERIES, HIDDEN),
        **_linear("image_proj.proj_in", HIDDEN, embed_dim),
        **_linear("image_proj.proj_out", width, HIDDEN),
        **_norm("image_proj.norm_out", width),
        **_linear("image_proj.time_embedding.linear_1", HIDDEN, TIMESTEPS),
        **_linear("image_proj.time_embedding.linear_2", HIDDEN, HIDDEN),
    }
    for i in range(depth):
        block = f"image_proj.layers.{i}."
        for name in ("ln0", "ln1", "adaln_norm"):
            shapes.update(_norm(block + name, HIDDEN))
        shapes.update(_linear(block + "adaln_proj", 4 * HIDDEN, HIDDEN))
        shapes[block + "attn.to_q.weight"] = 2 * 64, HIDDEN
        shapes[block + "attn.to_kv.weight"] = 4 * 64, HIDDEN
        shapes[block + "attn.to_out.0.weight"] = HIDDEN, 2 * 64
        shapes[block + "ff.net.0.proj.weight"] = 4 * HIDDEN, HIDDEN
        shapes[block + "ff.net.2.weight"] = HIDDEN, 4 * HIDDEN
    for i in range(attentions):
        attention = f"ip_adapter.{i}."
        shapes.update(_linear(attention + "norm_ip.linear", 2 * width, HIDDEN))
        shapes[attention + "to_k_ip.weight"] = shapes[attention + "to_v_ip.weight"] = width, width
        shapes.update({f"{attention}{name}.weight": (head_dim,) for name in ("norm_q", "norm_k", "norm_ip_k")})
    rng = np.random.default_rng(seed)
    return {name: _random(name, shape, rng) for name, shape in shapes.items()}


def _linear(name, out, width):
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _random(name, shape, rng):
    values = tiny.random_weight(name, shape, rng)
    return values + np.float32(1.0) if ".ln" in name and name.endswith("weight") else values


def with_original_names(named):
    """The same tensors under the names of InstantX's own file."""
    pairs = (
        (".ln0.", ".0.norm1."), (".ln1.", ".0.norm2."), (".attn.to_out.0.", ".0.to_out."), (".attn.", ".0."),
        (".adaln_norm.", ".1.0."), (".ff.net.0.proj.", ".1.1."), (".ff.net.2.", ".1.3."), (".adaln_proj.", ".2.1."),
    )  # fmt: skip
    renamed = {}
    for name, value in named.items():
        for own, original in pairs if name.startswith("image_proj.layers.") else ():
            name = name.replace(own, original)
        renamed[name] = value
    return renamed


def write_file(directory, named):
    """Writes ``ip-adapter.safetensors``."""
    import paddle

    from ppsd3.serialization.writers import write_tensors

    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / FILE, "wb") as file:
        write_tensors(file, {name: paddle.to_tensor(value) for name, value in named.items()}, {"format": "pt"})


def write(directory, attentions, seed=0, **sizes):
    """Writes a directory with the adapter and its image encoder, as published ones are."""
    from ppsd3 import SiglipImageProcessor, SiglipVisionModel

    write_file(directory, tensors(attentions, seed=seed, **sizes))
    encoder = tiny.randomize(SiglipVisionModel(**SIGLIP), seed)
    encoder.eval()
    encoder.save_pretrained(directory / "image_encoder")
    SiglipImageProcessor(**PROCESSOR).save_pretrained(directory / "image_encoder")
    return directory
