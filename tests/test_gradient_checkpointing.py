"""Gradient checkpointing on every network where adapters alone train, with a call's scale that is not 1."""

import numpy as np
import paddle
import pytest
from helpers import golden, loras, tiny

import ppsd3
from ppsd3.adapters.network import LoraConfig, add_adapter
from ppsd3.ops import scaled_adapters

SIGLIP = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 12,
    "patch_size": 4,
}  # fmt: skip
TINY_VAE = {"latent_channels": 4, "encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}


def call(net, **more):
    """The output of a transformer or ControlNet."""
    arrays = {**golden.transformer_inputs(net.config, (8, 8)), **more}
    return net(**{name: paddle.to_tensor(array) for name, array in arrays.items()})


def ids():
    return paddle.to_tensor(np.arange(18).reshape(2, 9))


def pictures(side):
    return paddle.to_tensor(golden.normal(2, 3, side, side))


# Class -> (a small network, what a call gives, one of the blocks that are computed again).
NETWORKS = {
    "SD3Transformer2DModel": (
        {**tiny.TRANSFORMER, **tiny.SD35},
        lambda net: call(net).sample,
        lambda net: net.transformer_blocks[1],
    ),
    "SD3ControlNetModel": (
        tiny.TRANSFORMER,
        lambda net: call(net, controlnet_cond=golden.normal(2, 4, 8, 8, seed=2)).controlnet_block_samples[-1],
        lambda net: net.transformer_blocks[1],
    ),
    "CLIPTextModelWithProjection": (
        {**tiny.CLIP_L, **tiny.CLIP_IDS},
        lambda net: net(ids()).last_hidden_state,
        lambda net: net.text_model.encoder.layers[1],
    ),
    "T5EncoderModel": (
        {**tiny.T5, "dropout_rate": 0.0},
        lambda net: net(ids()).last_hidden_state,
        lambda net: net.encoder.block[1],
    ),
    "SiglipVisionModel": (
        SIGLIP,
        lambda net: net(pictures(12)).last_hidden_state,
        lambda net: net.encoder.layers[1],
    ),
    "AutoencoderKL": (tiny.VAE, lambda net: net(pictures(16)).sample, lambda net: net.decoder.up_blocks[1]),
    "AutoencoderTiny": (TINY_VAE, lambda net: net(pictures(16)).sample, lambda net: net.decoder.layers[2]),
}
# Without linear layers there are no adapters: all of its weights train.
WITHOUT_ADAPTERS = ("AutoencoderTiny",)


def make(name):
    net = tiny.fill(getattr(ppsd3, name)(**NETWORKS[name][0]))
    if name not in WITHOUT_ADAPTERS:
        add_adapter(net, LoraConfig(r=2, target_modules=".*"))
        rng = np.random.default_rng(0)
        for parameter in net.parameters():
            if not parameter.stop_gradient:
                parameter.set_value(paddle.to_tensor(loras.normal(rng, *parameter.shape)))
    net.train()
    return net


def gradients(net, scale=None):
    """By the parameter's name; the scale of the call is no longer set on the way back."""
    net.clear_gradients()
    with scaled_adapters([net], scale, "scale"):
        loss = NETWORKS[type(net).__name__][1](net).square().mean()
    loss.backward()
    return {name: p.grad.numpy() for name, p in net.named_parameters() if p.grad is not None}


def assert_close(found, expected):
    assert set(found) >= set(expected) and expected
    assert not any(found[name].any() for name in set(found) - set(expected)), "of outputs that are not used"
    for name, gradient in expected.items():
        assert np.abs(found[name] - gradient).max() <= 1e-4 * np.abs(gradient).max() + 1e-9, name


def differ(found, expected):
    return any(np.abs(found[name] - expected[name]).max() > 1e-2 * np.abs(expected[name]).max() for name in expected)


def test_every_network_is_there():
    classes = [c for c in (getattr(ppsd3, name) for name in ppsd3.__all__) if isinstance(c, type)]
    networks = {c.__name__ for c in classes if hasattr(c, "enable_gradient_checkpointing")}
    assert networks - {"ModelMixin", "SD3MultiControlNetModel"} == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_adapters_get_the_same_gradients(name):
    net = make(name)
    scale = None if name in WITHOUT_ADAPTERS else 0.5
    expected = gradients(net, scale)
    assert name in WITHOUT_ADAPTERS or all("lora" in parameter for parameter in expected)
    assert scale is None or differ(gradients(net), expected)
    net.enable_gradient_checkpointing()
    assert_close(gradients(net, scale), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_run_again_on_the_way_back(name):
    net = make(name)
    runs = []
    NETWORKS[name][2](net).register_forward_post_hook(lambda *_: runs.append(net.is_gradient_checkpointing))
    gradients(net)
    net.enable_gradient_checkpointing()
    gradients(net)
    assert runs == [False, True, True]


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"SD3Transformer2DModel", "SD3ControlNetModel"}))
def test_frozen_networks_record_nothing(name):
    net = make(name)
    for parameter in net.parameters():
        parameter.stop_gradient = True
    net.enable_gradient_checkpointing()
    assert NETWORKS[name][1](net).stop_gradient


def test_dropout_draws_the_same_numbers_again():
    net = tiny.fill(ppsd3.T5EncoderModel(**{**tiny.T5, "dropout_rate": 0.3}))
    net.train()
    found = []
    for seed in (5, 6, 5):
        paddle.seed(seed)
        found.append(gradients(net))
        if seed == 6:
            net.enable_gradient_checkpointing()
    assert differ(found[1], found[0])
    assert_close(found[2], found[0])
