"""Adapters for the tiny pipeline of ``helpers.tiny``, as files would hold them."""

import numpy as np

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")


def normal(rng, *shape, gain=0.12):
    return (rng.standard_normal(shape) * gain).astype("float32")


def low_rank(shapes, rank=3, seed=0):
    """PEFT's keys for modules -> (out, in)."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, (out, width) in shapes.items():
        own = rank(name) if callable(rank) else rank
        tensors[f"{name}.lora_A.weight"] = normal(rng, own, width)
        tensors[f"{name}.lora_B.weight"] = normal(rng, out, own)
    return tensors


def shapes_of(network, wanted=ATTENTION):
    """Module -> (out, in) of linear layers whose names end so."""
    from ppsd3.adapters.network import linear_layers

    return {
        name: (layer.out_features, layer.in_features)
        for name, layer in linear_layers(network).items()
        if any(name.endswith("." + end) for end in wanted)
    }


def for_pipeline(pipe, seed=0, rank=3):
    """A LoRA for the transformer, with its modulation and embedders, and both CLIP towers."""
    parts = {
        "transformer": shapes_of(pipe.transformer, (*ATTENTION, "linear", "linear_1", "net.0.proj", "net.2")),
        "text_encoder": shapes_of(pipe.text_encoder, ("q_proj", "out_proj", "fc1")),
        "text_encoder_2": shapes_of(pipe.text_encoder_2, ("k_proj", "fc2")),
    }
    return {
        f"{part}.{key}": value
        for i, (part, shapes) in enumerate(parts.items())
        for key, value in low_rank(shapes, rank, seed + i).items()
    }


def changes(tensors, scale=1.0):
    """Name of a weight -> ``scale * B A``, keys being PEFT's without prefix."""
    end = ".lora_A.weight"
    modules = [key[: -len(end)] for key in tensors if key.endswith(end)]
    return {
        f"{module}.weight": tensors[f"{module}.lora_B.weight"] @ tensors[module + end] * scale for module in modules
    }


def merge(network, tensors, scale=1.0):
    """Adds the changes to the weights of ``network``."""
    state = network.state_dict()
    for name, change in changes(tensors, scale).items():
        state[name].set_value(state[name].numpy() + change)


def merge_torch(network, tensors, scale=1.0):
    """As :func:`merge`, for a torch module."""
    state = network.state_dict()
    for name, change in changes(tensors, scale).items():
        state[name] += state[name].new_tensor(change)


def part(tensors, prefix):
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}
