"""Adapters of one network, under the names of diffusers and PEFT: each method does what the pipeline's does to all."""

import numpy as np
import paddle
import pytest
from helpers import loras, tiny

from ppsd3 import (
    LoraConfig,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from ppsd3.serialization.readers import SafetensorsFile
from ppsd3.utils.errors import InputError, UnknownArgumentError, WeightMismatchError


@pytest.fixture
def transformer():
    return tiny.make_pipeline().transformer


def answer(transformer):
    paddle.seed(3)
    inputs = [paddle.randn(shape) for shape in ([1, 4, 8, 8], [1, 5, 40], [1, 28])]
    with paddle.no_grad():
        return transformer(*inputs, paddle.to_tensor([500.0])).sample.numpy()


def lora(transformer, seed=0, prefix="transformer."):
    tensors = loras.low_rank(loras.shapes_of(transformer), 3, seed)
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def merged(tensors, scale=1.0):
    other = tiny.make_pipeline().transformer
    loras.merge(other, {name[len("transformer.") :]: tensor for name, tensor in tensors.items()}, scale)
    return answer(other)


def near(one, other):
    return np.abs(one - other).max() <= 1e-4


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_what_is_loaded_acts(transformer, prefix):
    tensors = lora(transformer)
    transformer.load_lora_adapter({prefix + name[len("transformer.") :]: value for name, value in tensors.items()})
    assert near(answer(transformer), merged(tensors))
    assert transformer.active_adapters() == ["default_0"]


def test_keys_of_other_networks_are_left_alone(transformer):
    tensors = lora(transformer)
    transformer.load_lora_adapter({**tensors, "text_encoder.text_model.q_proj.lora_A.weight": np.zeros((2, 4))})
    assert near(answer(transformer), merged(tensors))


def test_a_text_encoder_has_its_own(transformer):
    encoder = tiny.make_pipeline().text_encoder
    shapes = loras.shapes_of(encoder, ("q_proj",))
    for number, prefix in enumerate(("", "text_encoder.")):
        tensors = {prefix + name: value for name, value in loras.low_rank(shapes).items()}
        encoder.load_lora_adapter(tensors, prefix="text_encoder", adapter_name=f"a{number}")
    assert encoder.active_adapters() == ["a0", "a1"]


def test_weights_and_switches(transformer):
    plain, first, second = answer(transformer), lora(transformer), lora(transformer, seed=5)
    transformer.load_lora_adapter(first, adapter_name="a")
    transformer.load_lora_adapter(second, adapter_name="b")
    transformer.set_adapters("a", 0.5)
    assert near(answer(transformer), merged(first, 0.5))
    transformer.set_adapter("b")
    assert near(answer(transformer), merged(second))
    transformer.set_adapter("a")  # its weight has stayed
    assert near(answer(transformer), merged(first, 0.5))
    transformer.disable_adapters()
    assert np.array_equal(answer(transformer), plain) and transformer.active_adapters() == []
    transformer.enable_adapters()
    assert near(answer(transformer), merged(first, 0.5))
    transformer.delete_adapters(["a"])
    transformer.set_adapters(["b"], [1.0])
    assert near(answer(transformer), merged(second))
    transformer.fuse_lora()
    assert near(answer(transformer), merged(second))
    transformer.unfuse_lora()
    transformer.unload_lora()
    assert np.array_equal(answer(transformer), plain)


def test_saved_and_loaded(transformer, tmp_path):
    tensors = lora(transformer)
    transformer.load_lora_adapter(tensors, adapter_name="a")
    expected = answer(transformer)
    transformer.save_lora_adapter(tmp_path, "a", upcast_before_saving=True)
    file = SafetensorsFile(tmp_path / "pytorch_lora_weights.safetensors")
    assert set(file.keys()) == {name[len("transformer.") :] for name in tensors}
    again = tiny.make_pipeline().transformer
    again.load_lora_adapter(tmp_path, prefix=None)
    assert np.array_equal(answer(again), expected)


def test_exchanged_in_place(transformer):
    first, second = lora(transformer), lora(transformer, seed=5)
    transformer.load_lora_adapter(first, adapter_name="a")
    transformer.set_adapters("a", 0.5)
    transformer.load_lora_adapter(second, adapter_name="a", hotswap=True)
    assert near(answer(transformer), merged(second, 0.5))
    with pytest.raises(InputError, match="hotswap"):
        transformer.load_lora_adapter(second, adapter_name="b", hotswap=True)


def test_a_new_adapter_is_trained_alone(transformer):
    before = answer(transformer)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="mine")
    assert np.array_equal(answer(transformer), before)
    trainable = [name for name, p in transformer.named_parameters() if not p.stop_gradient]
    assert trainable and all("mine" in name for name in trainable)


def test_state_dicts(transformer):
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], lora_bias=True))
    state = {
        name: np.full(tensor.shape, 0.3, "float32") for name, tensor in get_peft_model_state_dict(transformer).items()
    }
    assert "transformer_blocks.0.attn.to_q.lora_A.weight" in state
    before = answer(transformer)
    set_peft_model_state_dict(transformer, state)
    assert np.abs(answer(transformer) - before).max() > 1e-3
    name = next(iter(state))
    for wrong in ({**state, "x": 1}, {**state, name: np.zeros((1, 1))}):
        with pytest.raises(WeightMismatchError, match="LoraConfig"):
            set_peft_model_state_dict(transformer, wrong)


def test_refusals(transformer):
    for call in (transformer.set_adapter, transformer.set_adapters, transformer.delete_adapters):
        with pytest.raises(InputError, match="'nobody'"):
            call("nobody")
    with pytest.raises(InputError, match="2 adapter_names and 1 weights"):
        transformer.set_adapters(["a", "b"], [1.0])
    with pytest.raises(InputError, match="LoraConfig"):
        transformer.add_adapter({"r": 4})
    with pytest.raises(InputError, match="pickle"):
        transformer.save_lora_adapter("x", safe_serialization=False)
    with pytest.raises(InputError, match="'nobody'"):
        get_peft_model_state_dict(transformer, "nobody")


def adapted(transformer, **settings):
    transformer.add_adapter(LoraConfig(r=2, **settings))
    return {name.rpartition(".lora_A")[0] for name in get_peft_model_state_dict(transformer) if "lora_A" in name}


def test_which_layers(transformer):
    every = set(loras.shapes_of(transformer, [""]) or ())
    with_all = adapted(transformer, target_modules="all-linear")
    assert with_all >= {"proj_out", "context_embedder"} | every
    transformer.unload_lora()
    some = adapted(transformer, target_modules=["to_q", "to_k"], exclude_modules=["transformer_blocks.0.attn.to_k"])
    assert "transformer_blocks.0.attn.to_q" in some and "transformer_blocks.1.attn.to_k" in some
    assert "transformer_blocks.0.attn.to_k" not in some
    transformer.unload_lora()
    assert adapted(transformer, target_modules=None) == {n for n in with_all if ".attn." in n}


def test_dropout_acts_in_training_alone(transformer):
    transformer.add_adapter(LoraConfig(r=2, lora_dropout=0.5))
    state = get_peft_model_state_dict(transformer)
    set_peft_model_state_dict(transformer, {name: paddle.ones_like(value) for name, value in state.items()})
    assert np.array_equal(answer(transformer), answer(transformer))
    evaluated = answer(transformer)
    transformer.train()
    assert np.abs(answer(transformer) - evaluated).max() > 1e-3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bias": "all"}, "lora_bias"),
        ({"modules_to_save": ["proj_out"]}, "linear layers alone"),
        ({"layers_to_transform": [0]}, "target_modules"),
        ({"fan_in_fan_out": True}, "out, in"),
        ({"lora_dropout": 1.0}, "0 and below 1"),
        ({"lora_dropout": 0.1, "use_dora": True}, "use_dora"),
    ],
)
def test_settings_that_are_not_done(settings, message):
    with pytest.raises(InputError, match=message):
        LoraConfig(**settings)


def test_names_of_settings():
    neutral = {"bias": "none", "task_type": None, "inference_mode": False, "modules_to_save": None, "revision": None}
    assert LoraConfig(r=4, **neutral).r == 4
    for name, remedy in {
        "rank": "Use r",
        "eva_config": "PEFT",
        "lora_alhpa": "lora_alpha",
        "zzz": "target_modules",
    }.items():
        with pytest.raises(UnknownArgumentError, match=remedy):
            LoraConfig(**{name: 1})


def test_controlnets_have_adapters_too(tmp_path):
    """Their keys begin with "controlnet", with any prefix that is given, or with nothing."""
    net = tiny.randomize(SD3ControlNetModel(**tiny.TRANSFORMER), 0)
    rng = np.random.default_rng(0)
    name, patches = "controlnet_blocks.0", "pos_embed_input.proj"
    down, up, change = loras.normal(rng, 2, 32), loras.normal(rng, 32, 2), loras.normal(rng, 32, 4, 2, 2)
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{patches}.diff": change}
    before = {module: net.state_dict()[f"{module}.weight"].numpy().copy() for module in (name, patches)}
    for prefix, start in (("controlnet", "controlnet."), ("x", "x."), (None, ""), ("transformer", "")):
        net.load_lora_adapter({start + key: value for key, value in tensors.items()}, prefix=prefix, adapter_name="a")
        net.fuse_lora()
        fused = net.state_dict()
        np.testing.assert_allclose(fused[f"{name}.base_layer.weight"].numpy(), before[name] + up @ down, atol=1e-6)
        np.testing.assert_allclose(fused[f"{patches}.base_layer.weight"].numpy(), before[patches] + change, atol=1e-6)
        net.unfuse_lora()
        net.save_lora_adapter(tmp_path, "a")
        assert set(SafetensorsFile(tmp_path / "pytorch_lora_weights.safetensors").keys()) == set(tensors)
        net.delete_adapters("a")
    for module, weight in before.items():
        np.testing.assert_array_equal(net.state_dict()[f"{module}.weight"].numpy(), weight)


@pytest.mark.parametrize("dora", [False, True])
def test_a_convolution_can_be_trained(dora):
    """As PEFT trains it: A has the shape of the kernel, and B is 1x1."""
    network = tiny.randomize(SD3Transformer2DModel(**{**tiny.TRANSFORMER, **tiny.SD35}), 0, 0.4)
    before, weight = answer(network), network.pos_embed.proj.weight.numpy().copy()
    network.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=["pos_embed.proj"], use_dora=dora, lora_bias=True))
    np.testing.assert_allclose(answer(network), before, atol=0 if not dora else 1e-5)
    trainable = {name for name, parameter in network.named_parameters() if not parameter.stop_gradient}
    assert len(trainable) == 3 + dora
    optimizer = paddle.optimizer.SGD(1e-2, parameters=[p for p in network.parameters() if not p.stop_gradient])
    inputs = [paddle.randn(shape) for shape in ([1, 4, 8, 8], [1, 5, 40], [1, 28])]
    for _ in range(2):
        loss = network(*inputs, paddle.to_tensor([500.0])).sample.square().mean()
        loss.backward()
        optimizer.step()
    state = get_peft_model_state_dict(network)
    shapes = {name.rpartition("lora_")[2]: tensor.shape for name, tensor in state.items()}
    wanted = {"A.weight": [3, 4, 2, 2], "B.weight": [32, 3, 1, 1], "B.bias": [32]}
    assert shapes == ({**wanted, "magnitude_vector": [1, 32, 1, 1]} if dora else wanted)
    down, up = (state[f"pos_embed.proj.lora_{x}.weight"].numpy() for x in "AB")
    assert np.abs(up).max() > 0
    whole = weight + 2 * np.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    if dora:
        lengths = np.linalg.norm(whole.reshape(32, -1), axis=1).reshape(32, 1, 1, 1)
        whole *= state["pos_embed.proj.lora_magnitude_vector"].numpy().reshape(32, 1, 1, 1) / lengths
    network.fuse_lora()
    np.testing.assert_allclose(network.pos_embed.proj.base_layer.weight.numpy(), whole, atol=1e-6)


def test_layers_that_no_lora_is_trained_for(transformer):
    for settings, words in (
        ({"target_modules": ["to_q", "norm2"]}, None),  # one without weights is no layer at all
        ({"target_modules": ["attn.norm_q"]}, "attn.norm_q, a norm"),
        ({"target_modules": ["pos_embed.proj"], "lora_dropout": 0.1}, "pos_embed.proj is a convolution"),
    ):
        network = tiny.randomize(SD3Transformer2DModel(**{**tiny.TRANSFORMER, **tiny.SD35}), 0)
        if words is None:
            network.add_adapter(LoraConfig(**settings))
            continue
        with pytest.raises(InputError, match=words):
            network.add_adapter(LoraConfig(**settings))
        assert not network.active_adapters()
    transformer.add_adapter(LoraConfig(target_modules=r".*\.attn\..*"))
    transformer.delete_adapters("default")
    transformer.add_adapter(LoraConfig(target_modules="all-linear"))
    assert not any("pos_embed" in name for name in get_peft_model_state_dict(transformer))


def test_only_a_lora_is_filled(transformer):
    name = "transformer.transformer_blocks.0.attn.to_q"
    transformer.load_lora_adapter({f"{name}.lokr_w1": np.ones((4, 4), "f4"), f"{name}.lokr_w2": np.ones((8, 8), "f4")})
    with pytest.raises(InputError, match=r"lokr_w1, which is no part of a LoRA.*hotswap=True"):
        set_peft_model_state_dict(transformer, get_peft_model_state_dict(transformer, "default_0"), "default_0")
