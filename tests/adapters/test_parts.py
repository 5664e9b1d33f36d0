"""All that a file has for a layer is used: the change of each weight is the sum of all parts, computed by hand."""

import itertools

import numpy as np
import paddle
import pytest
from helpers import loras, tiny

from ppsd3.adapters import network as adapted, read_adapters
from ppsd3.adapters.files import write_adapters
from ppsd3.models import SD3Transformer2DModel
from ppsd3.ops.adapted import checkpoint_tensors
from ppsd3.serialization.tensors import from_numpy
from ppsd3.utils.errors import CheckpointFormatError, InputError, WeightMismatchError

RNG = np.random.default_rng(0)
LINEAR, PATCHES, NORM = "transformer_blocks.0.attn.to_q", "pos_embed.proj", "transformer_blocks.0.attn.norm_q"
D, C, P = 32, 4, 2  # width, channels, side of a patch
ALPHA = 3.0


@pytest.fixture(scope="module")
def network():
    return tiny.randomize(SD3Transformer2DModel(**{**tiny.TRANSFORMER, **tiny.SD35}), 0, 0.4)


def read(network, tensors, **options):
    tensors = {name: from_numpy(np.array(value)) for name, value in tensors.items()}
    layers = {"transformer": adapted.adaptable_layers(network)}
    return read_adapters(tensors, layers, "a file", **options)[0]["transformer"]


def normal(*shape):
    return loras.normal(RNG, *shape)


def lora():
    a, b = normal(4, D), normal(D, 4)
    return {"lora_down.weight": a, "lora_up.weight": b}, ALPHA / 4 * b @ a, 0


def lora_with_bias():
    a, b, bias = normal(4, D), normal(D, 4), normal(D)
    return {"lora_A.weight": a, "lora_B.weight": b, "lora_B.bias": bias}, ALPHA / 4 * b @ a, ALPHA / 4 * bias


def loha(rank=2):
    a1, b1, a2, b2 = normal(D, rank), normal(rank, D), normal(D, rank), normal(rank, D)
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
    return parts, ALPHA / rank * (a1 @ b1) * (a2 @ b2), 0


def large_loha():
    return loha(8)


def lokr():
    w1, a, b = normal(4, 4), normal(8, 3), normal(3, 8)
    return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, ALPHA / 3 * np.kron(w1, a @ b), 0


def diff():
    matrix = normal(D, D)
    return {"diff": matrix}, matrix, 0


def diff_b():
    bias = normal(D)
    return {"diff_b": bias}, 0, bias


def w_norm_of_a_linear_layer():
    matrix = normal(D, D)
    return {"w_norm": matrix}, matrix, 0


KINDS = (lora, lora_with_bias, loha, large_loha, lokr, diff, diff_b, w_norm_of_a_linear_layer)


def rotated(weight, blocks, rescale, limit=None):
    """LyCORIS' formula: its R is from the left, transposed, on blocks of rows."""
    skew = blocks - blocks.transpose(0, 2, 1)
    if limit is not None and np.linalg.norm(skew) > limit:
        skew = skew * limit / np.linalg.norm(skew)
    one = np.eye(blocks.shape[1])
    rotations = (one + skew) @ np.linalg.inv(one - skew)
    rows = np.einsum("knm,knx->kmx", rotations, weight.reshape(len(blocks), blocks.shape[1], -1))
    return rows.reshape(weight.shape) * rescale


def weight_and_bias(network, module):
    layer = adapted.layer_at(network, module)
    layer = getattr(layer, "base_layer", layer)
    return layer.weight.numpy().astype("float64"), None if getattr(layer, "bias", None) is None else layer.bias.numpy()


def answer(network):
    paddle.seed(3)
    inputs = [paddle.randn(shape) for shape in ([1, C, 8, 8], [1, 5, 40], [1, 28])]
    with paddle.no_grad():
        return network(*inputs, paddle.to_tensor([500.0])).sample.numpy()


def check(network, module, tensors, change, bias=0, **options):
    """The file changes weight and bias by that much, acts like it, and both hold after saving and loading."""
    weight, own_bias = weight_and_bias(network, module)
    before = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    plain = answer(network)
    found = read(network, tensors, **options)
    for turn in ("as it was read", "as it is saved"):
        adapted.attach(network, "a", found)
        acting, strength = answer(network), 0.5
        adapted.set_strengths(network, {"a": 0.0})
        np.testing.assert_array_equal(answer(network), plain)
        adapted.set_strengths(network, {"a": strength})
        half = answer(network)
        adapted.fuse(network)
        changed, changed_bias = weight_and_bias(network, module)
        np.testing.assert_allclose(answer(network), half, atol=2e-5 * np.abs(half).max())
        adapted.unfuse(network)
        adapted.set_strengths(network, {"a": 1.0})
        adapted.fuse(network)
        whole, whole_bias = weight_and_bias(network, module)
        fused = checkpoint_tensors(network)
        assert {name for name in before if not np.array_equal(fused[name].numpy(), before[name])} <= {
            f"{module}.weight",
            f"{module}.bias",
        }
        np.testing.assert_allclose(answer(network), acting, atol=2e-5 * np.abs(acting).max())
        assert np.abs(acting - plain).max() > 2e-5
        adapted.unfuse(network)
        saved = write_adapters(adapted.adapters_called(network, "a"))
        adapted.unload(network)
        for name, tensor in network.state_dict().items():
            np.testing.assert_array_equal(tensor.numpy(), before[name])
        np.testing.assert_allclose(whole - weight, np.broadcast_to(change, weight.shape), atol=3e-6, err_msg=turn)
        if not any(name.endswith(("dora_scale", "_vector")) for name in tensors):
            np.testing.assert_allclose(changed - weight, (whole - weight) * strength, atol=3e-6)
        if own_bias is not None:
            np.testing.assert_allclose(whole_bias - own_bias, np.broadcast_to(bias, own_bias.shape), atol=3e-6)
            np.testing.assert_allclose(changed_bias - own_bias, (whole_bias - own_bias) * strength, atol=3e-6)
        tensors, config = saved
        metadata = {f"transformer.{name}": value for name, value in config.items()}
        tensors = {f"transformer.{name}": tensor.numpy() for name, tensor in tensors.items()}
        found = read(network, tensors, metadata=metadata)


def named(kinds, module=LINEAR):
    """(tensors of a file with these kinds for one layer, the sum of their changes, of their biases)."""
    tensors, change, bias = {f"transformer.{module}.alpha": np.float32(ALPHA)}, 0, 0
    for kind in kinds:
        parts, matrix, vector = kind()
        tensors.update({f"transformer.{module}.{name}": value for name, value in parts.items()})
        change, bias = change + matrix, bias + vector
    return tensors, change, bias


def pairs():
    """Each kind alone, and each pair; but for a ring of them, these are for the tests of the machine."""
    for kinds in itertools.chain(((kind,) for kind in KINDS), itertools.combinations(KINDS, 2)):
        names = [kind.__name__ for kind in kinds]
        if set(names) in ({"lora", "lora_with_bias"}, {"loha", "large_loha"}):
            continue  # two names of one tensor
        places = [KINDS.index(kind) for kind in kinds]
        marks = pytest.mark.machine if len(kinds) == 2 and places[1] - places[0] != 2 else ()
        yield pytest.param(kinds, id=" and ".join(names), marks=marks)


@pytest.mark.parametrize("kinds", pairs())
def test_all_parts_of_a_layer_add_up(network, kinds):
    check(network, LINEAR, *named(kinds))


@pytest.mark.parametrize("kinds", [KINDS[1:3] + KINDS[4:], (lora, diff_b), (diff,)])
def test_magnitudes_are_lengths_after_all_of_them(network, kinds):
    weight, _ = weight_and_bias(network, LINEAR)
    tensors, change, bias = named(kinds)
    magnitude = np.abs(normal(D)) + 0.5
    tensors[f"transformer.{LINEAR}.dora_scale"] = magnitude[:, None]
    whole = weight + change
    whole *= (magnitude / np.linalg.norm(whole, axis=1))[:, None]
    check(network, LINEAR, tensors, whole - weight, bias)


@pytest.mark.parametrize("constraint, rescaled", [(None, False), (0.02, True), (100.0, False)])
def test_rotations_of_rows(network, constraint, rescaled):
    weight, _ = weight_and_bias(network, LINEAR)
    blocks = normal(4, 8, 8)
    factors = 1 + normal(D, 1) if rescaled else np.float32(1)
    tensors = {f"lycoris_{LINEAR.replace('.', '_')}.oft_blocks": blocks}
    if rescaled:
        tensors[f"lycoris_{LINEAR.replace('.', '_')}.rescale"] = factors
    if constraint is not None:
        tensors[f"lycoris_{LINEAR.replace('.', '_')}.alpha"] = np.float32(constraint)
    limit = None if constraint is None else constraint * D
    wanted = rotated(weight, blocks.astype("float64"), factors, limit) - weight
    check(network, LINEAR, tensors, wanted)
    other = normal(D, D)
    check(network, LINEAR, {**tensors, f"transformer.{LINEAR}.diff": other}, wanted + other)


def test_rotations_of_joined_layers(network):
    weights = np.concatenate([weight_and_bias(network, f"transformer_blocks.0.attn.to_{x}")[0] for x in "qkv"])
    blocks = normal(6, 16, 16)
    wanted = rotated(weights, blocks.astype("float64"), 1.0) - weights
    found = read(network, {"lora_unet_joint_blocks_0_x_block_attn_qkv.oft_blocks": blocks})
    for letter, own, change in zip("qkv", np.split(weights, 3), np.split(wanted, 3)):
        adapter = found[f"transformer_blocks.0.attn.to_{letter}"]
        made = adapter.weight_change(paddle.to_tensor(own.astype("float32")), 1.0)
        np.testing.assert_allclose(made.numpy(), change, atol=3e-6)
    with pytest.raises(CheckpointFormatError, match=r"qkv\.oft_blocks rotates rows of several layers"):
        read(network, {"lora_unet_joint_blocks_0_x_block_attn_qkv.oft_blocks": normal(4, 24, 24)})


def convolutions():
    r = 3
    down, up = normal(r, C, P, P), normal(D, r, 1, 1)
    product = np.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    yield "lora", {"lora_A.weight": down, "lora_B.weight": up}, ALPHA / r * product
    flat = {"lora_down.weight": down.reshape(r, -1), "lora_up.weight": up[:, :, 0, 0]}
    yield "lora of matrices", flat, ALPHA / r * product
    core, first, last = normal(r, r, P, P), normal(r, C, 1, 1), normal(D, r, 1, 1)
    tucker = np.einsum("oa,abkl,bi->oikl", last[:, :, 0, 0], core, first[:, :, 0, 0])
    parts = {"lora_mid.weight": core, "lora_down.weight": first, "lora_up.weight": last}
    yield "lora with a core", parts, ALPHA / r * tucker
    matrix = normal(D, C, P, P)
    yield "diff", {"diff": matrix}, matrix
    w1, w2 = normal(D, r), normal(D, r)
    v1, v2 = normal(r, C * P * P), normal(r, C * P * P)
    parts = {"hada_w1_a": w1, "hada_w1_b": v1, "hada_w2_a": w2, "hada_w2_b": v2}
    yield "loha", parts, ALPHA / r * ((w1 @ v1) * (w2 @ v2)).reshape(D, C, P, P)
    cores, ins, outs = [normal(r, r, P, P) for _ in "12"], [normal(r, C) for _ in "12"], [normal(r, D) for _ in "12"]
    parts = {f"hada_t{i + 1}": cores[i] for i in (0, 1)}
    parts.update({f"hada_w{i + 1}_a": outs[i] for i in (0, 1)}, **{f"hada_w{i + 1}_b": ins[i] for i in (0, 1)})
    factors = [np.einsum("ijkl,ip,jq->pqkl", cores[i], outs[i], ins[i]) for i in (0, 1)]
    yield "loha with cores", parts, ALPHA / r * factors[0] * factors[1]
    w1, w2 = normal(4, 2), normal(8, 2, P, P)
    whole = np.einsum("ab,cdkl->acbdkl", w1, w2).reshape(D, C, P, P)
    yield "lokr", {"lokr_w1": w1, "lokr_w2": w2}, whole
    core, out, into = normal(r, r, P, P), normal(r, 8), normal(r, 2)
    parts = {"lokr_w1": w1, "lokr_t2": core, "lokr_w2_a": out, "lokr_w2_b": into}
    second = np.einsum("ijkl,ip,jq->pqkl", core, out, into)
    yield "lokr with a core", parts, ALPHA / r * np.einsum("ab,cdkl->acbdkl", w1, second).reshape(D, C, P, P)


@pytest.mark.parametrize("parts, change", [pytest.param(*rest, id=name) for name, *rest in convolutions()])
def test_the_convolution_of_patches(network, parts, change):
    tensors = {f"lora_transformer_pos_embed_proj.{name}": value for name, value in parts.items()}
    check(network, PATCHES, {**tensors, "lora_transformer_pos_embed_proj.alpha": np.float32(ALPHA)}, change)
    bias, more = normal(D), normal(D, C, P, P)
    beside = {"lora_unet_x_embedder_proj.diff_b": bias}
    if "diff" not in parts:
        beside["lora_unet_x_embedder_proj.w_norm"] = more
        change = change + more
    tensors = {f"lora_unet_x_embedder_proj.{name}": value for name, value in parts.items()}
    tensors["lora_unet_x_embedder_proj.alpha"] = np.float32(ALPHA)
    check(network, PATCHES, {**tensors, **beside}, change, bias)


def test_magnitudes_and_rotations_of_the_convolution(network):
    weight, _ = weight_and_bias(network, PATCHES)
    _, parts, change = next(convolutions())
    magnitude = np.abs(normal(1, D, 1, 1)) + 0.5  # PEFT's shape
    whole = (weight + change).reshape(D, -1)
    whole *= (magnitude.ravel() / np.linalg.norm(whole, axis=1))[:, None]
    tensors = {f"transformer.{PATCHES}.{name}": value for name, value in parts.items()}
    tensors[f"transformer.{PATCHES}.lora_magnitude_vector"] = magnitude
    tensors[f"transformer.{PATCHES}.alpha"] = np.float32(ALPHA)
    check(network, PATCHES, tensors, whole.reshape(weight.shape) - weight)
    blocks = normal(4, 8, 8)
    wanted = rotated(weight, blocks.astype("float64"), 1.0) - weight
    check(network, PATCHES, {f"transformer.{PATCHES}.oft_blocks": blocks}, wanted)


@pytest.mark.parametrize(
    "key",
    ["lycoris_transformer_blocks_0_attn_norm_q.w_norm", "diffusion_model.joint_blocks.0.x_block.attn.ln_q.diff"],
)
def test_norms_of_queries_and_keys(network, key):
    vector = normal(8)
    check(network, NORM, {key: vector}, vector)


def test_norms_of_text_encoders():
    pipe = tiny.make_pipeline()
    for network, prefix, module, ends in (
        (pipe.text_encoder, "lora_te1", "text_model.encoder.layers.1.layer_norm2", ("w_norm", "b_norm")),
        (pipe.text_encoder_2, "clip_g", "text_model.final_layer_norm", ("diff", "diff_b")),
        (pipe.text_encoder_3, "lora_te3", "encoder.block.1.layer.0.layer_norm", ("w_norm",)),
    ):
        component = network._components[-1 if prefix == "clip_g" else 0]
        layer = adapted.layer_at(network, module)
        before = [getattr(layer, name).numpy().copy() for name in ("weight", "bias")[: len(ends)]]
        changes = [normal(*own.shape) for own in before]
        key = f"{prefix}_{module.replace('.', '_')}" if prefix != "clip_g" else f"{prefix}.{module}"
        tensors = {f"{key}.{end}": change for end, change in zip(ends, changes)}
        tokens = paddle.to_tensor([[3, 4, 5, 6]])
        plain = network(tokens)[0].numpy()
        pipe.load_lora_weights(tensors)
        acting = network(tokens)[0].numpy()
        assert np.abs(acting - plain).max() > 1e-3
        pipe.fuse_lora()
        np.testing.assert_allclose(network(tokens)[0].numpy(), acting, atol=1e-5)
        for name, own, change in zip(("weight", "bias"), before, changes):
            np.testing.assert_allclose(getattr(layer, name).numpy(), own + change, atol=1e-6)
        pipe.unfuse_lora()
        assert pipe.get_list_adapters() == {component: ["default_0"]}
        pipe.unload_lora_weights()
        np.testing.assert_array_equal(network(tokens)[0].numpy(), plain)


def test_a_bias_for_a_layer_without_one_is_not_fused_by_half():
    pipe = tiny.make_pipeline()
    name = "encoder.block.0.layer.0.SelfAttention.q"
    pipe.load_lora_weights(
        {
            "text_encoder.text_model.final_layer_norm.diff": normal(16),
            f"text_encoder_3.{name}.diff_b": normal(adapted.layer_at(pipe.text_encoder_3, name).out_features),
            "text_encoder_3.encoder.final_layer_norm.diff": normal(40),
        }
    )
    with pytest.raises(InputError, match=f"{name}.* has none"):
        pipe.text_encoder_3.fuse_lora()
    assert not pipe.fused_loras


LEFT = {
    "a core of a linear layer": (lora, {"lora_mid.weight": (4, 4, 2, 2)}, "lora_mid.weight"),
    "a core of LoHa": (loha, {"hada_t1": (2, 2, 1, 1)}, "hada_t1"),
    "factors without rotations": (diff, {"rescale": (D,)}, "rescale"),
    "a bias of B without B": (diff, {"lora_B.bias": (D,)}, "lora_B.bias"),
    "half of a LoRA": (diff, {"lora_A.weight": (4, D)}, "has no lora_B"),
    "a part of LoHa": (lora, {"hada_w1_a": (D, 2)}, "has no hada_w1_b"),
    "a part of LoKr": (lora, {"lokr_w1": (4, 4)}, "has no lokr_w2_a"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_over_is_named(network, case):
    kind, more, words = LEFT[case]
    tensors = named([kind])[0]
    tensors.update({f"transformer.{LINEAR}.{name}": normal(*shape) for name, shape in more.items()})
    with pytest.raises(CheckpointFormatError, match=f"a file: transformer.{LINEAR}.*{words}"):
        read(network, tensors)


@pytest.mark.parametrize("part", ["lora_A.weight", "hada_w1_a", "lokr_w1", "oft_blocks", "dora_scale", "rescale"])
def test_what_a_norm_cannot_have_is_named(network, part):
    with pytest.raises(CheckpointFormatError, match=f"{NORM}.{part} cannot be used: {NORM} is a norm"):
        read(network, {f"transformer.{NORM}.diff": normal(8), f"transformer.{NORM}.{part}": normal(8, 8)})


def test_two_names_of_one_tensor(network):
    down, up = normal(4, D), normal(D, 4)
    tensors = {f"transformer.{LINEAR}.lora_A.weight": down, f"transformer.{LINEAR}.lora_B.weight": up}
    with pytest.raises(CheckpointFormatError, match=r"lora_A.weight and transformer.*lora_down.weight are two names"):
        read(network, {**tensors, f"transformer.{LINEAR}.lora_down.weight": down})
    joined = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    joined = {f"{joined}.lora_down.weight": down, f"{joined}.lora_up.weight": normal(3 * D, 4)}
    with pytest.raises(CheckpointFormatError, match=f"attn_qkv are both for {LINEAR}"):
        read(network, {**tensors, **joined})


def test_tensors_that_are_no_numbers_of_an_adapter(network):
    key = f"transformer.{LINEAR}.lora_A.weight"
    down, up = normal(4, D), normal(D, 4)
    good = {key: down, f"transformer.{LINEAR}.lora_B.weight": up}
    bad = np.array(down)
    bad[1, 2] = np.inf
    for value, words in (
        (bad, "not finite"),
        (down * np.float32(np.nan), "not finite"),
        (down.astype("int32"), "is int32"),
        (down > 0, "is bool"),
        (down[:0], r"\[0, 32\]"),
        (down.ravel(), r"shape \[128\]"),
        (down[None], r"shape \[1, 4, 32\]"),
    ):
        with pytest.raises((CheckpointFormatError, WeightMismatchError), match=f"a file: {key}.*{words}"):
            read(network, {**good, key: value})
    for value, words in ((normal(2), r"shape \[2\]"), (np.float32(np.nan), "not finite"), (np.bool_(True), "is bool")):
        with pytest.raises(CheckpointFormatError, match=f"a file: transformer.{LINEAR}.alpha.*{words}"):
            read(network, {**good, f"transformer.{LINEAR}.alpha": value})
    with pytest.raises(CheckpointFormatError, match=f"alpha of transformer.{LINEAR} is 0"):
        read(network, {**good, f"transformer.{LINEAR}.alpha": np.float32(0)})
    for value in (np.float32(2), np.array([2.0], "float32"), np.array([[2]], "int64"), np.array(2, "int32")):
        assert read(network, {**good, f"transformer.{LINEAR}.alpha": value})[LINEAR].scaling == 0.5


def test_alphas_beside_the_tensors_are_numbers(network):
    tensors = named([lora])[0]
    with pytest.raises(InputError, match="network_alphas"):
        read(network, tensors, alphas={f"transformer.{LINEAR}": "4"})
