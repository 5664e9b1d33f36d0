"""Dialects: the same adapter under the names of each program becomes the same layers, bit for bit."""

import re

import numpy as np
import paddle
import pytest
from helpers import loras, tiny

from ppsd3.adapters import Dense, Kronecker, LowRank, read_adapters
from ppsd3.adapters.network import adaptable_layers
from ppsd3.models import SD3Transformer2DModel
from ppsd3.ops.adapted import dense_weight
from ppsd3.serialization.tensors import from_numpy
from ppsd3.utils.errors import CheckpointFormatError, WeightMismatchError


@pytest.fixture(scope="module")
def networks():
    parts = tiny.make_components()
    transformer = tiny.randomize(SD3Transformer2DModel(**{**tiny.TRANSFORMER, **tiny.SD35}), 0, 0.4)
    return {
        "transformer": transformer,
        "text_encoder": parts["text_encoder"],
        "text_encoder_2": parts["text_encoder_2"],
        "text_encoder_3": parts["text_encoder_3"],
    }


def read(networks, tensors, **options):
    tensors = {name: from_numpy(np.array(value)) for name, value in tensors.items()}
    return read_adapters(
        tensors, {n: adaptable_layers(network) for n, network in networks.items()}, "a file", **options
    )[0]


def peft(module, down, up, alpha=None):
    tensors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    return tensors if alpha is None else {**tensors, f"{module}.alpha": np.float32(alpha)}


def same(found, wanted):
    assert {part: set(some) for part, some in found.items()} == {part: set(some) for part, some in wanted.items()}
    for part, some in wanted.items():
        for module, adapter in some.items():
            other = found[part][module]
            assert type(other) is type(adapter) and other.scaling == adapter.scaling
            for (name, a), (other_name, b) in zip(adapter.named_parameters(), other.named_parameters()):
                assert name == other_name
                np.testing.assert_array_equal(a.numpy(), b.numpy())


RNG = np.random.default_rng(0)
D, M, L = 32, 128, 40  # width, width of the feed-forward, of the text


def pair(out, width, rank=4):
    return loras.normal(RNG, rank, width), loras.normal(RNG, out, rank)


# module in the original -> (where its rows go in diffusers, in order), out, in
ORIGINAL = {
    "joint_blocks.0.x_block.attn.qkv": (["transformer_blocks.0.attn.to_" + x for x in "qkv"], 3 * D, D),
    "joint_blocks.1.x_block.attn2.qkv": (["transformer_blocks.1.attn2.to_" + x for x in "qkv"], 3 * D, D),
    "joint_blocks.2.context_block.attn.qkv": ([f"transformer_blocks.2.attn.add_{x}_proj" for x in "qkv"], 3 * D, D),
    "joint_blocks.0.x_block.attn.proj": (["transformer_blocks.0.attn.to_out.0"], D, D),
    "joint_blocks.0.x_block.attn2.proj": (["transformer_blocks.0.attn2.to_out.0"], D, D),
    "joint_blocks.1.context_block.attn.proj": (["transformer_blocks.1.attn.to_add_out"], D, D),
    "joint_blocks.1.x_block.mlp.fc1": (["transformer_blocks.1.ff.net.0.proj"], M, D),
    "joint_blocks.1.context_block.mlp.fc2": (["transformer_blocks.1.ff_context.net.2"], D, M),
    "joint_blocks.0.x_block.adaLN_modulation.1": (["transformer_blocks.0.norm1.linear"], 9 * D, D),
    "joint_blocks.1.context_block.adaLN_modulation.1": (["transformer_blocks.1.norm1_context.linear"], 6 * D, D),
    "joint_blocks.2.context_block.adaLN_modulation.1": (["transformer_blocks.2.norm1_context.linear"], 2 * D, D),
    "final_layer.adaLN_modulation.1": (["norm_out.linear"], 2 * D, D),
    "final_layer.linear": (["proj_out"], 16, D),
    "context_embedder": (["context_embedder"], D, L),
    "t_embedder.mlp.0": (["time_text_embed.timestep_embedder.linear_1"], D, 256),
    "y_embedder.mlp.2": (["time_text_embed.text_embedder.linear_2"], D, D),
}
SWAPPED = ("joint_blocks.2.context_block.adaLN_modulation.1", "final_layer.adaLN_modulation.1")
TEXT = {"text_encoder": ("lora_te1", "text_encoders.clip_l.transformer", 16)}
TEXT["text_encoder_2"] = ("lora_te2", "text_encoders.clip_g.transformer", 12)


def both_forms():
    """(original module -> (down, up)), and the same as PEFT's keys."""
    original, wanted = {}, {}
    for module, (targets, out, width) in ORIGINAL.items():
        down, up = pair(out, width)
        original[module] = down, up
        if module in SWAPPED:
            up = np.concatenate([up[out // 2 :], up[: out // 2]])
        for target, rows in zip(targets, np.split(up, len(targets))):
            wanted.update(peft("transformer." + target, down, rows, alpha=2))
    return original, wanted


@pytest.mark.parametrize("dialect", ["kohya", "comfy", "comfy with lora_up", "plain"])
def test_original_names_equal_peft(networks, dialect):
    original, wanted = both_forms()
    tensors = {}
    for module, (down, up) in original.items():
        stem = {
            "kohya": "lora_unet_" + module.replace(".", "_"),
            "plain": module,
        }.get(dialect, "diffusion_model." + module)
        a, b = (".lora_A", ".lora_B") if dialect in ("comfy", "plain") else (".lora_down", ".lora_up")
        tensors.update({f"{stem}{a}.weight": down, f"{stem}{b}.weight": up, f"{stem}.alpha": np.float32(2)})
    for component, (kohya, comfy, width) in TEXT.items():
        down, up = pair(width, width)
        module = "text_model.encoder.layers.1.self_attn.v_proj"
        stem = f"{kohya}_{module.replace('.', '_')}" if dialect == "kohya" else f"{comfy}.{module}"
        tensors.update({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": np.float32(2)})
        wanted.update(peft(f"{component}.{module}", down, up, alpha=2))
    same(read(networks, tensors), read(networks, wanted))


def test_names_of_onetrainer(networks):
    """The original's names, but Q, K and V are numbered; the text encoders' are transformers'."""
    tensors, wanted = {}, {}
    for module, (targets, out, width) in ORIGINAL.items():
        if module == SWAPPED[0]:
            continue  # it leaves out the last block's text norm
        for number, target in enumerate(targets):
            down, up = pair(out // len(targets), width)
            stem = f"transformer.{module}" + (f".{number}" if len(targets) > 1 else "")
            tensors.update({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up})
            tensors[f"{stem}.alpha"] = np.float32(2)
            swapped = np.concatenate([up[out // 2 :], up[: out // 2]]) if module in SWAPPED else up
            wanted.update(peft("transformer." + target, down, swapped, alpha=2))
    for prefix, component, module in (
        ("clip_l", "text_encoder", "text_model.encoder.layers.0.self_attn.q_proj"),
        ("clip_g", "text_encoder_2", "text_model.encoder.layers.1.mlp.fc1"),
        ("t5", "text_encoder_3", "encoder.block.1.layer.0.SelfAttention.o"),
    ):
        layer = adaptable_layers(networks[component])[module]
        down, up = pair(layer.out_features, layer.in_features)
        tensors.update({f"{prefix}.{module}.lora_down.weight": down, f"{prefix}.{module}.lora_up.weight": up})
        wanted.update(peft(f"{component}.{module}", down, up))
    same(read(networks, tensors), read(networks, wanted))


def test_kohya_names_of_diffusers_modules_and_of_t5(networks):
    down, up = pair(D, D)
    down_5, up_5 = pair(L - 8, L)
    found = read(
        networks,
        {
            "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight": down,
            "lora_transformer_transformer_blocks_0_attn_to_q.lora_up.weight": up,
            "lora_te3_encoder_block_1_layer_0_SelfAttention_k.lora_down.weight": down_5,
            "lora_te3_encoder_block_1_layer_0_SelfAttention_k.lora_up.weight": up_5,
        },
    )
    wanted = {
        **peft("transformer.transformer_blocks.0.attn.to_q", down, up),
        **peft("text_encoder_3.encoder.block.1.layer.0.SelfAttention.k", down_5, up_5),
    }
    same(found, read(networks, wanted))


def test_names_of_diffusers_before_peft(networks):
    down, up = pair(D, D)
    text_down, text_up = pair(16, 16)
    layer = "text_encoder.text_model.encoder.layers.0.self_attn"
    found = read(
        networks,
        {
            "transformer.transformer_blocks.0.attn.processor.to_q_lora.down.weight": down,
            "transformer.transformer_blocks.0.attn.processor.to_q_lora.up.weight": up,
            "transformer.transformer_blocks.0.attn.processor.to_out_lora.down.weight": down,
            "transformer.transformer_blocks.0.attn.processor.to_out_lora.up.weight": up,
            "transformer.transformer_blocks.0.attn.to_k.lora.down.weight": down,
            "transformer.transformer_blocks.0.attn.to_k.lora.up.weight": up,
            f"{layer}.q_proj.lora_linear_layer.down.weight": text_down,
            f"{layer}.q_proj.lora_linear_layer.up.weight": text_up,
            f"{layer}.to_v_lora.down.weight": text_down,
            f"{layer}.to_v_lora.up.weight": text_up,
        },
    )
    attention = "transformer.transformer_blocks.0.attn"
    wanted = {}
    for name in ("to_q", "to_k", "to_out.0"):
        wanted.update(peft(f"{attention}.{name}", down, up))
    for name in ("q_proj", "v_proj"):
        wanted.update(peft(f"{layer}.{name}", text_down, text_up))
    same(found, read(networks, wanted))


def test_adapter_names_inside_keys(networks):
    down, up = pair(D, D)
    name = "base_model.model.transformer_blocks.0.attn.to_q"
    tensors = {f"{name}.lora_A.default.weight": down, f"{name}.lora_B.default.weight": up}
    same(read(networks, tensors), read(networks, peft("transformer.transformer_blocks.0.attn.to_q", down, up)))


def change(adapter, weight, strength=1.0):
    return adapter.weight_change(weight, strength).numpy()


def test_loha_is_the_product_entry_by_entry(networks):
    for rank, kind in ((2, LowRank), (8, Dense)):
        parts = {f"hada_w{i}_a": loras.normal(RNG, D, rank) for i in (1, 2)}
        parts.update({f"hada_w{i}_b": loras.normal(RNG, rank, D) for i in (1, 2)})
        name = "lycoris_transformer_blocks_0_attn_to_q"
        tensors = {f"{name}.{key}": value for key, value in parts.items()}
        found = read(networks, {**tensors, f"{name}.alpha": np.float32(1)})["transformer"]
        adapter = found["transformer_blocks.0.attn.to_q"]
        assert type(adapter) is kind
        wanted = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"]) / rank
        np.testing.assert_allclose(change(adapter, paddle.zeros([D, D])), wanted, atol=1e-6)


@pytest.mark.parametrize("factored", [(), (1,), (2,), (1, 2)])
def test_lokr_is_the_kronecker_product(networks, factored):
    sizes, rank, parts, matrices = {1: (4, 4), 2: (8, 8)}, 3, {}, {}
    for i, (rows, columns) in sizes.items():
        if i in factored:
            parts[f"lokr_w{i}_a"], parts[f"lokr_w{i}_b"] = (
                loras.normal(RNG, rows, rank),
                loras.normal(RNG, rank, columns),
            )
            matrices[i] = parts[f"lokr_w{i}_a"] @ parts[f"lokr_w{i}_b"]
        else:
            parts[f"lokr_w{i}"] = matrices[i] = loras.normal(RNG, rows, columns)
    name = "lycoris_transformer_blocks_0_attn_to_q"
    tensors = {f"{name}.{key}": value for key, value in parts.items()}
    found = read(networks, {**tensors, f"{name}.alpha": np.float32(2)})["transformer"]
    adapter = found["transformer_blocks.0.attn.to_q"]
    wanted = np.kron(matrices[1], matrices[2]) * (2 / rank if factored else 1.0)
    np.testing.assert_allclose(change(adapter, paddle.zeros([D, D])), wanted, atol=1e-6)
    x = paddle.randn([2, 5, D])
    np.testing.assert_allclose(
        (adapter.product(x, paddle.zeros([2, 5, D])) * adapter.scaling).numpy(), x.numpy() @ wanted.T, atol=1e-5
    )


@pytest.mark.parametrize("rows, kind", [(6, Kronecker), (4, Dense)])
def test_lokr_of_joined_projections(networks, rows, kind):
    first, second = loras.normal(RNG, rows, 4), loras.normal(RNG, 96 // rows, 8)
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    found = read(networks, {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second})["transformer"]
    for letter, wanted in zip("qkv", np.split(np.kron(first, second), 3)):
        adapter = found[f"transformer_blocks.0.attn.to_{letter}"]
        assert type(adapter) is kind
        np.testing.assert_allclose(change(adapter, paddle.zeros([D, D])), wanted, atol=1e-6)


def test_full_changes_of_weight_and_bias(networks):
    matrix, bias = loras.normal(RNG, D, D), loras.normal(RNG, D)
    name = "lycoris_transformer_blocks_0_attn_to_q"
    adapter = read(networks, {f"{name}.diff": matrix, f"{name}.diff_b": bias})["transformer"][
        "transformer_blocks.0.attn.to_q"
    ]
    np.testing.assert_array_equal(change(adapter, paddle.zeros([D, D])), matrix)
    np.testing.assert_array_equal(adapter.bias_change(0.5).numpy(), bias * 0.5)


@pytest.mark.parametrize("suffix", ["lora_magnitude_vector", "lora_magnitude_vector.default.weight", "dora_scale"])
def test_dora(networks, suffix):
    layer = networks["transformer"].transformer_blocks[0].attn.to_q
    down, up = pair(D, D)
    magnitude = np.abs(loras.normal(RNG, D)) + 0.5
    name = "transformer.transformer_blocks.0.attn.to_q"
    tensors = peft(name, down, up, alpha=2)
    tensors[f"{name}.{suffix}"] = magnitude[:, None] if suffix == "dora_scale" else magnitude
    adapter = read(networks, tensors)["transformer"]["transformer_blocks.0.attn.to_q"]
    whole = layer.weight.numpy() + 0.5 * up @ down
    whole *= (magnitude / np.linalg.norm(whole, axis=1))[:, None]
    np.testing.assert_allclose(change(adapter, dense_weight(layer)), whole - layer.weight.numpy(), atol=1e-5)
    x = paddle.randn([3, D])
    y = layer(x)
    np.testing.assert_allclose(
        (y + adapter.added(x, y, layer, 1.0)).numpy(), x.numpy() @ whole.T + layer.bias.numpy(), atol=1e-5
    )


def test_magnitudes_of_joined_projections(networks):
    down, up = pair(3 * D, D)
    magnitude = np.abs(loras.normal(RNG, 3 * D)) + 0.5
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.dora_scale": magnitude[:, None]}
    found = read(networks, tensors)["transformer"]
    for letter, wanted in zip("qkv", np.split(magnitude, 3)):
        adapter = found[f"transformer_blocks.0.attn.to_{letter}"]
        np.testing.assert_array_equal(adapter.lora_magnitude_vector.numpy(), wanted)


def test_rank_stabilised_scaling(networks):
    name = "transformer.transformer_blocks.0.attn.to_q"
    metadata = {"transformer.lora_alpha": 6, "transformer.use_rslora": True}
    adapter = read(networks, peft(name, *pair(D, D)), metadata=metadata)["transformer"][name[len("transformer.") :]]
    assert adapter.scaling == 3.0


@pytest.mark.parametrize("settings", [{"alpha_pattern": {"(a+)+$|to_q": 8}}, {"alpha_pattern": {"0.attn.to_q": 8}}])
def test_patterns_of_alphas(networks, settings):
    name = "transformer.transformer_blocks.0.attn.to_q"
    metadata = {f"transformer.{key}": value for key, value in {"lora_alpha": 6, **settings}.items()}
    adapter = read(networks, peft(name, *pair(D, D)), metadata=metadata)["transformer"][name[len("transformer.") :]]
    assert adapter.scaling == 2.0


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"alpha_pattern": {"(?=a)": 8}}, r"a file: transformer.alpha_pattern: The pattern '\(\?=a\)'"),
        ({"alpha_pattern": {"(.{0,99}){0,99}": 8}}, "more than 1000 parts"),
        ({"alpha_pattern": [8]}, "alpha_pattern .* not a dict"),
        ({"alpha_pattern": {"to_q": "8"}}, "not numbers for modules"),
        ({"lora_alpha": "8"}, "transformer.lora_alpha '8', not a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan, not a number"),
        ({"use_rslora": 1}, "use_rslora 1, not true or false"),
    ],
)
def test_configurations_that_cannot_be_read(networks, settings, words):
    metadata = {f"transformer.{key}": value for key, value in settings.items()}
    with pytest.raises(CheckpointFormatError, match=words):
        read(networks, peft("transformer.transformer_blocks.0.attn.to_q", *pair(D, D)), metadata=metadata)


Q = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
# A key beside a LoRA -> the words that are for its cause alone.
CAUSES = {
    "transformer.transformer_blocks.9.attn.to_q.lora_A.weight": "another size .* not of that number",
    "lora_unet_joint_blocks_37_x_block_attn_qkv.lora_down.weight": "another size .* not of that number",
    "transformer.transformer_blocks.2.attn2.to_q.lora_A.weight": "another size .* not of that number",
    "transformer.single_transformer_blocks.3.attn.to_q.lora_A.weight": "Flux",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": "Flux",
    "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight": "Stable Diffusion 1, 2 or XL",
    "transformer.transformer_blocks.0.attn.to_x.lora_A.weight": "Unknown layers of the transformer",
    "transformer.transformer_blocks.0.attn.to_q.b1.weight": "GLoRA, which ppsd3 does not have",
    "transformer.transformer_blocks.0.attn.to_q.oft_r.default.weight": "OFT in PEFT's form",
    "transformer.proj_out.modules_to_save.weight": "Whole modules",
    "transformer.proj_out.weight": "No tensors of an adapter",
    "transformer.proj_out.alpha": "Alphas of layers that the file does not change",
    "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight": "text_encoder_3 .T5-XXL., which is not",
}


@pytest.mark.parametrize("key", CAUSES)
def test_each_cause_has_its_own_words(networks, key):
    networks = {name: network for name, network in networks.items() if name != "text_encoder_3"}
    tensors = peft(Q[: -len(".lora_A.weight")], *pair(D, D))
    every = set(CAUSES.values()) - {CAUSES[key]}
    for beside, error in ((tensors, WeightMismatchError), ({}, CheckpointFormatError)):
        shape = () if key.endswith("alpha") else (4, D)
        with pytest.raises(error, match=CAUSES[key]) as raised:
            read(networks, {**beside, key: np.ones(shape, "float32")})
        assert "a file" in str(raised.value) and key in str(raised.value)
        assert not any(re.search(words, str(raised.value)) for words in every)


@pytest.mark.parametrize("width, model", [(768, "Diffusion 1"), (1024, "Diffusion 2"), (2048, "Diffusion XL")])
def test_the_text_tells_which_stable_diffusion(networks, width, model):
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight"
    with pytest.raises(CheckpointFormatError, match=f"a LoRA for Stable {model}, judged by"):
        read(networks, {key: np.ones((4, width), "float32")})


def test_layers_that_only_another_version_has():
    network = tiny.make_pipeline().transformer  # as SD3-medium
    for module, words in (("attn2.to_q", "SD3.5-medium, which alone"), ("attn.norm_q", "SD3.5, which has norms")):
        key = f"transformer.transformer_blocks.0.{module}"
        with pytest.raises(CheckpointFormatError, match=words):
            read({"transformer": network}, peft(key, *pair(D, D)))


def test_shapes_of_another_size_are_named(networks):
    with pytest.raises(
        WeightMismatchError, match=r"B.weight .*\[2432, 2432\] .*\[32, 32\].* SD3.5-large, another size"
    ):
        read(networks, peft(Q[: -len(".lora_A.weight")], *pair(2432, 2432)))


def test_shapes_that_are_no_size_are_not_called_so(networks):
    name = "transformer.transformer_blocks.0.ff.net.0.proj"
    for tensors, words in (({"diff": (D, M)}, "It is transposed"), ({"diff": (M, D + 1)}, "layers of other sizes")):
        with pytest.raises(WeightMismatchError, match=words) as raised:
            read(networks, {f"{name}.{part}": np.ones(shape, "float32") for part, shape in tensors.items()})
        assert "another size" not in str(raised.value)


def test_what_cannot_be_read(networks):
    name = "transformer.transformer_blocks.0.attn.to_q"
    down, up = pair(D, D)
    with pytest.raises(CheckpointFormatError, match="it is empty"):
        read(networks, {})
    with pytest.raises(CheckpointFormatError, match="columns"):
        read(networks, {**peft(name, down, up), f"{name}.dora_scale": np.ones((1, D), "float32")})
    with pytest.raises(CheckpointFormatError, match="lokr_t2"):
        read(networks, {**peft(name, down, up), f"{name}.lokr_t2": np.ones((1, D), "float32")})
    stem = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    with pytest.raises(WeightMismatchError, match="3 equal parts"):
        read(networks, {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up})
