"""Adapters of a pipeline: what is loaded acts as the same change of the weights would."""

import json

import numpy as np
import paddle
import pytest
from helpers import loras, tiny

from ppsd3 import PromptCache, TorchGenerator
from ppsd3.adapters.keys import split_key
from ppsd3.serialization.readers import SafetensorsFile
from ppsd3.serialization.tensors import from_numpy
from ppsd3.serialization.writers import write_tensors
from ppsd3.utils.errors import CheckpointFormatError, InputError, WeightMismatchError

NETWORKS = ("transformer", "text_encoder", "text_encoder_2")


def draw(pipe, scale=None, **options):
    kwargs = {} if scale is None else {"joint_attention_kwargs": {"scale": scale}}
    generator = TorchGenerator(0)
    return pipe(
        "a red circle", num_inference_steps=2, generator=generator, output_type="latent", **kwargs, **options
    ).images.numpy()


@pytest.fixture(scope="module")
def plain():
    return draw(tiny.make_pipeline())


@pytest.fixture
def pipe():
    return tiny.make_pipeline()


_merged_pictures = {}  # drawn once: several tests compare with the same


def merged_picture(tensors, scale=1.0, *more):
    changes = ((tensors, scale), *more)
    return _merged_picture(
        tuple((tuple(sorted((k, v.tobytes()) for k, v in some.items())), f) for some, f in changes), changes
    )


def _merged_picture(key, changes):
    if key not in _merged_pictures:
        _merged_pictures[key] = _draw_merged(changes)
    return _merged_pictures[key]


def _draw_merged(changes):
    pipe = tiny.make_pipeline()
    for some, factor in changes:
        for name in NETWORKS:
            loras.merge(getattr(pipe, name), loras.part(some, name), factor)
    return draw(pipe)


def close(a, b, bar=2e-5):
    assert np.abs(a - b).max() <= bar * np.abs(b).max()


def write(path, tensors, metadata=None):
    with open(path, "wb") as file:
        write_tensors(file, {name: from_numpy(np.array(value)) for name, value in tensors.items()}, metadata)
    return path


def test_a_lora_acts_as_merged_weights(pipe, plain, tmp_path):
    tensors = loras.for_pipeline(pipe)
    pipe.load_lora_weights(write(tmp_path / "a.safetensors", tensors))
    drawn = draw(pipe)
    close(drawn, merged_picture(tensors))
    assert np.abs(drawn - plain).max() > 1e-2
    assert pipe.get_active_adapters() == ["default_0"]
    pipe.unload_lora_weights()
    np.testing.assert_array_equal(draw(pipe), plain)
    assert pipe.get_list_adapters() == {}


def test_scales_of_a_call_and_of_adapters(pipe, plain):
    tensors = loras.for_pipeline(pipe)
    pipe.load_lora_weights(tensors, adapter_name="a")
    half = merged_picture(tensors, 0.5)
    close(draw(pipe, 0.5), half)
    np.testing.assert_array_equal(draw(pipe, 0.0), plain)
    pipe.set_adapters("a", 0.5)
    close(draw(pipe), half)
    pipe.set_adapters("a", {"transformer": 0.5})
    assert np.abs(draw(pipe) - half).max() > 1e-3  # the text encoders' stay at 1
    pipe.set_adapters(["a"], [dict.fromkeys(NETWORKS, 0.5)])
    close(draw(pipe), half)


def test_scale_of_encode_prompt_is_for_the_text_encoders(pipe):
    pipe.load_lora_weights(loras.for_pipeline(pipe))
    ones, halves = (pipe.encode_prompt("a red circle", None, None, lora_scale=scale)[0].numpy() for scale in (1.0, 0.5))
    assert np.abs(ones - halves).max() > 1e-3
    assert pipe.text_encoder.text_model.encoder.layers[0].self_attn.q_proj.scale == 1.0


def test_a_scale_without_an_adapter_is_refused(pipe):
    for make in (lambda: draw(pipe, 0.5), lambda: pipe.encode_prompt("a", None, None, lora_scale=0.5)):
        with pytest.raises(InputError, match="none is loaded"):
            make()
    np.testing.assert_array_equal(draw(pipe, 1.0), draw(pipe))


def test_a_prompt_cache_tells_adapters_apart(pipe):
    pipe.enable_prompt_cache(PromptCache())
    before = draw(pipe)
    tensors = loras.for_pipeline(pipe)
    pipe.load_lora_weights(tensors)
    close(draw(pipe), merged_picture(tensors))
    close(draw(pipe, 0.5), merged_picture(tensors, 0.5))
    pipe.disable_lora()
    np.testing.assert_array_equal(draw(pipe), before)


def test_several_adapters(pipe, plain):
    a, b = loras.for_pipeline(pipe, 0), loras.for_pipeline(pipe, 10, rank=2)
    pipe.load_lora_weights(a, adapter_name="a")
    pipe.load_lora_weights(b, adapter_name="b")
    assert pipe.get_active_adapters() == ["a", "b"]
    assert pipe.get_list_adapters() == {name: ["a", "b"] for name in NETWORKS}
    pipe.set_adapters(["a", "b"], [0.7, 0.2])
    close(draw(pipe), merged_picture(a, 0.7, (b, 0.2)))
    pipe.set_adapters("b")
    close(draw(pipe), merged_picture(b))
    pipe.disable_lora()
    assert pipe.get_active_adapters() == []
    np.testing.assert_array_equal(draw(pipe), plain)
    pipe.enable_lora()
    pipe.delete_adapters("b")
    pipe.set_adapters("a", 0.7)
    close(draw(pipe), merged_picture(a, 0.7))


def test_fusing_and_unfusing(pipe, plain):
    a, b = loras.for_pipeline(pipe, 0), loras.for_pipeline(pipe, 10)
    pipe.load_lora_weights(a, adapter_name="a")
    pipe.load_lora_weights(b, adapter_name="b")
    state = {name: t.numpy().copy() for name, t in pipe.transformer.state_dict().items()}
    pipe.fuse_lora(adapter_names=["a"], lora_scale=0.7, safe_fusing=True)
    assert pipe.fused_loras == {"a"} and pipe.num_fused_loras == 1
    close(draw(pipe), merged_picture(a, 0.7, (b, 1.0)))
    pipe.fuse_lora(adapter_names="b")
    close(draw(pipe), merged_picture(a, 0.7, (b, 1.0)))
    with pytest.raises(InputError, match="already"):
        pipe.fuse_lora()
    with pytest.raises(InputError, match="unfuse_lora"):
        pipe.delete_adapters("a")
    with pytest.raises(InputError, match="unfuse_lora"):
        pipe.set_adapters("b")
    pipe.unfuse_lora()
    for name, tensor in pipe.transformer.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), state[name])
    pipe.disable_lora()
    np.testing.assert_array_equal(draw(pipe), plain)


def test_fused_weights_stay_when_adapters_are_unloaded(pipe):
    tensors = loras.for_pipeline(pipe)
    pipe.load_lora_weights(tensors)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    close(draw(pipe), merged_picture(tensors))


def test_numbers_that_are_not_finite_are_not_fused(pipe, plain):
    tensors = loras.for_pipeline(pipe)
    for tensor in list(tensors.values())[:2]:
        tensor[0, 0] = 3e38  # the product of A and B is too large
    pipe.load_lora_weights(tensors)
    with pytest.raises(InputError, match="not finite"):
        pipe.fuse_lora(safe_fusing=True)
    pipe.unload_lora_weights()
    np.testing.assert_array_equal(draw(pipe), plain)


@pytest.mark.parametrize("order", ["fuse first", "load first"])
def test_fused_projections_and_adapters(pipe, order):
    tensors = loras.for_pipeline(pipe)
    steps = [pipe.transformer.fuse_qkv_projections, lambda: pipe.load_lora_weights(tensors, adapter_name="a")]
    for step in steps if order == "fuse first" else steps[::-1]:
        step()
    close(draw(pipe), merged_picture(tensors))
    pipe.fuse_lora(lora_scale=0.5)
    close(draw(pipe), merged_picture(tensors, 0.5))


def test_compiled_networks_see_adapters(pipe, plain):
    tensors = loras.for_pipeline(pipe)
    pipe.compile(["transformer"])
    close(draw(pipe), plain)
    pipe.load_lora_weights(tensors)
    close(draw(pipe), merged_picture(tensors))
    close(draw(pipe, 0.5), merged_picture(tensors, 0.5))
    pipe.disable_lora()
    close(draw(pipe), plain)


@pytest.mark.parametrize("order", ["quantize first", "load first"])
def test_adapters_on_int8_weights(order):
    reference, pipe = tiny.make_pipeline(), tiny.make_pipeline()
    tensors = loras.for_pipeline(pipe)
    steps = [lambda: pipe.quantize("int8", ["transformer"]), lambda: pipe.load_lora_weights(tensors)]
    for step in steps if order == "quantize first" else steps[::-1]:
        step()
    reference.quantize("int8", ["transformer"])
    without = draw(reference)
    drawn, wanted = draw(pipe), merged_picture(tensors)
    assert np.abs(drawn - wanted).max() < 0.05 * np.abs(wanted - without).max() + 0.02 * np.abs(wanted).max()
    pipe.fuse_lora()
    assert np.abs(draw(pipe) - wanted).max() < 0.1 * np.abs(wanted).max()
    pipe.unfuse_lora()
    np.testing.assert_array_equal(draw(pipe), drawn)


def test_adapters_on_weights_in_16_bits(pipe):
    tensors = loras.for_pipeline(pipe)
    pipe.transformer.enable_layerwise_casting("float16")
    pipe.load_lora_weights(tensors)
    close(draw(pipe), merged_picture(tensors), 5e-3)


def test_what_is_saved(pipe, tmp_path):
    tensors = loras.for_pipeline(pipe)
    pipe.load_lora_weights(tensors)
    with pytest.raises(InputError, match="fuse_lora"):
        pipe.transformer.save_pretrained(tmp_path / "t")
    pipe.fuse_lora()
    pipe.transformer.save_pretrained(tmp_path / "t")
    again = type(pipe.transformer).from_pretrained(tmp_path / "t")
    merged = tiny.make_pipeline().transformer
    loras.merge(merged, loras.part(tensors, "transformer"))
    for name, tensor in merged.state_dict().items():
        np.testing.assert_allclose(again.state_dict()[name].numpy(), tensor.numpy(), atol=1e-6)


def test_saving_and_loading_an_adapter(pipe, tmp_path):
    tensors = loras.for_pipeline(pipe, rank=lambda name: 2 if name.endswith("to_q") else 3)
    alphas = {"transformer.transformer_blocks.0.attn.to_q.alpha": np.float32(5), "text_encoder.x": None}
    alphas.pop("text_encoder.x")
    pipe.load_lora_weights({**tensors, **alphas}, adapter_name="a")
    pipe.save_lora_weights(tmp_path / "saved")
    file = SafetensorsFile(tmp_path / "saved" / "pytorch_lora_weights.safetensors")
    assert sorted(file.keys()) == sorted(tensors)
    config = json.loads(file.metadata["lora_adapter_metadata"])
    assert config["transformer.r"] == 3 and config["transformer.alpha_pattern"]["transformer_blocks.0.attn.to_q"] == 5
    assert config["transformer.rank_pattern"]["transformer_blocks.1.attn.to_q"] == 2
    other = tiny.make_pipeline()
    other.load_lora_weights(tmp_path / "saved")
    np.testing.assert_array_equal(draw(other), draw(pipe))


def test_alphas_of_modules_and_of_the_file(pipe, tmp_path):
    tensors = {k: v for k, v in loras.for_pipeline(pipe).items() if k.startswith("transformer.")}
    wanted = merged_picture(tensors, 2.0)
    pipe.load_lora_weights({**tensors, **{_alpha(k): np.float32(6) for k in tensors}}, adapter_name="in keys")
    close(draw(pipe), wanted)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tensors, network_alphas={_alpha(k): 6 for k in tensors})
    close(draw(pipe), wanted)
    pipe.unload_lora_weights()
    config = {"transformer.r": 3, "transformer.lora_alpha": 1, "transformer.alpha_pattern": {".*": 6}}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    pipe.load_lora_weights(write(tmp_path / "a.safetensors", tensors, metadata))
    close(draw(pipe), wanted)


def _alpha(key):
    return split_key(key)[0] + ".alpha"


def test_files_that_do_not_fit(pipe, plain):
    with pytest.raises(CheckpointFormatError, match=r"lora_unet_down_blocks_0.lora_down.weight"):
        pipe.load_lora_weights({"lora_unet_down_blocks_0.lora_down.weight": np.zeros((2, 2), "float32")})
    tensors = loras.for_pipeline(pipe)
    lost = {"transformer.transformer_blocks.99.attn.to_q.lora_A.weight": np.zeros((2, 32), "float32")}
    with pytest.raises(WeightMismatchError, match=r"blocks.99"):
        pipe.load_lora_weights({**tensors, **lost})
    np.testing.assert_array_equal(draw(pipe), plain)
    pipe.load_lora_weights({**tensors, **lost}, strict=False)
    close(draw(pipe), merged_picture(tensors))
    wide = {"transformer.context_embedder.lora_A.weight": np.zeros((2, 8), "float32")}
    with pytest.raises(CheckpointFormatError, match="no lora_B"):
        pipe.load_lora_weights(wide)
    wide["transformer.context_embedder.lora_B.weight"] = np.zeros((32, 2), "float32")
    with pytest.raises(WeightMismatchError, match=r"\[32, 8\]"):
        pipe.load_lora_weights(wide)


def test_names(pipe):
    tensors = loras.for_pipeline(pipe)
    pipe.load_lora_weights(tensors, adapter_name="a")
    with pytest.raises(InputError, match="already"):
        pipe.load_lora_weights(tensors, adapter_name="a")
    for call in (lambda: pipe.set_adapters("b"), lambda: pipe.delete_adapters("b")):
        with pytest.raises(InputError, match=r"'b'.*has a"):
            call()
    with pytest.raises(InputError, match="vae"):
        pipe.set_adapters("a", {"vae": 1.0})
    with pytest.raises(InputError, match="vae"):
        pipe.fuse_lora(components=["vae"])


def test_training_reaches_the_adapter_alone(pipe):
    from ppsd3.adapters import LoraConfig, add_adapter

    transformer = pipe.transformer
    transformer.quantize("int8", skip=("transformer_blocks.0",))
    before = draw(pipe)
    add_adapter(transformer, LoraConfig(r=2, lora_alpha=4), "mine")
    np.testing.assert_array_equal(draw(pipe), before)  # B begins with zeros
    trainable = [p for p in transformer.parameters() if not p.stop_gradient]
    assert len(trainable) == 2 * (3 * 7 + 2)  # the last block has no to_add_out
    optimizer = paddle.optimizer.SGD(1e-3, parameters=trainable)
    inputs = [paddle.randn(s) for s in ([1, 4, 8, 8], [1, 5, 40], [1, 28])] + [paddle.to_tensor([500.0])]
    loss = transformer(*inputs).sample.square().mean()
    loss.backward()
    optimizer.step()
    assert float(transformer(*inputs).sample.square().mean()) < float(loss)
    pipe.set_adapters("mine", 0.0)
    np.testing.assert_array_equal(draw(pipe), before)  # the network itself was not trained


def test_exchanged_in_place(pipe):
    """The weights that were set stay, and what only one of the two adapts is as in the other."""
    first, second = loras.for_pipeline(pipe), loras.for_pipeline(pipe, seed=9, rank=5)
    second = {name: value for name, value in second.items() if not name.startswith("text_encoder_2.")}
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(first, adapter_name="a")
    pipe.set_adapters("a", {"transformer": 0.5, "text_encoder": 0.25})
    pipe.load_lora_weights(second, adapter_name="a", hotswap=True)
    assert pipe.get_list_adapters() == {"transformer": ["a"], "text_encoder": ["a"]}
    expected = tiny.make_pipeline()
    expected.load_lora_weights(second)
    expected.set_adapters("default_0", {"transformer": 0.5, "text_encoder": 0.25})
    np.testing.assert_array_equal(draw(pipe), draw(expected))
    pipe.load_lora_weights(first, hotswap=True)  # the only one there is
    assert pipe.get_active_adapters() == ["a"]


def test_an_inactive_adapter_stays_so(pipe, plain):
    tensors = loras.for_pipeline(pipe)
    pipe.load_lora_weights(tensors, adapter_name="a")
    pipe.set_adapters([])
    pipe.load_lora_weights(loras.for_pipeline(pipe, seed=9), adapter_name="a", hotswap=True)
    np.testing.assert_array_equal(draw(pipe), plain)


def test_there_has_to_be_one_to_exchange(pipe):
    tensors = loras.for_pipeline(pipe)
    with pytest.raises(InputError, match=r"hotswap=True exchanges.*there is none"):
        pipe.load_lora_weights(tensors, hotswap=True)
    pipe.load_lora_weights(tensors, adapter_name="a")
    with pytest.raises(InputError, match="'b'; there is a"):
        pipe.load_lora_weights(tensors, adapter_name="b", hotswap=True)
    pipe.fuse_lora()
    with pytest.raises(InputError, match="unfuse_lora"):
        pipe.load_lora_weights(tensors, adapter_name="a", hotswap=True)


def test_the_class_saves_layers(pipe, tmp_path):
    from ppsd3 import LoraConfig, StableDiffusion3Pipeline, get_peft_model_state_dict

    pipe.transformer.add_adapter(LoraConfig(r=2))
    layers = get_peft_model_state_dict(pipe.transformer)
    save = StableDiffusion3Pipeline.save_lora_weights
    save(tmp_path / "nothing", transformer_lora_layers=layers, is_main_process=False)
    assert not (tmp_path / "nothing").exists()
    save(save_directory=tmp_path, transformer_lora_layers=layers, safe_serialization=True)
    assert set(StableDiffusion3Pipeline.lora_state_dict(tmp_path)) == {f"transformer.{name}" for name in layers}
    for refused in ({"safe_serialization": False}, {"save_function": print}):
        with pytest.raises(InputError, match="safetensors"):
            save(tmp_path, transformer_lora_layers=layers, **refused)
    with pytest.raises(InputError, match="transformer_lora_layers"):
        save(tmp_path)


def words(pipe):
    return {key: np.random.default_rng(i).standard_normal((2, w)).astype("float32") for i, (key, w) in WORDS.items()}


WORDS = {0: ("clip_l", 16), 1: ("clip_g", 12)}


def test_words_of_onetrainer(pipe, plain, tmp_path):
    """A word that was learnt with a LoRA is in its file, and becomes one of the pipeline's."""
    tensors, word = loras.for_pipeline(pipe), words(pipe)
    bundled = {f"bundle_emb.<my.cat>.{key}": rows for key, rows in word.items()}
    pipe.load_lora_weights(write(tmp_path / "a.safetensors", {**tensors, **bundled}))
    expected = tiny.make_pipeline()
    expected.load_lora_weights(tensors)
    expected.load_textual_inversion(word, token="<my.cat>")
    for prompt in ("a <my.cat>", "a cat"):
        found, wanted = (one.encode_prompt(prompt, None, None)[0].numpy() for one in (pipe, expected))
        np.testing.assert_array_equal(found, wanted)
    pipe.unload_lora_weights()
    np.testing.assert_array_equal(draw(pipe), plain)
    assert pipe.tokenizer.added_tokens
    with pytest.raises(InputError, match=r"'<my.cat>' already"):
        pipe.load_lora_weights({**tensors, **bundled})
    assert not pipe.get_list_adapters()  # neither by half
    pipe.unload_textual_inversion()
    pipe.load_lora_weights({**tensors, **bundled})


@pytest.mark.parametrize(
    "part, cause", [("t5", "T5 or"), ("clip_l_out", "an encoder's output"), ("clip_g", "text_encoder_2, w")]
)
def test_words_that_nobody_can_learn(pipe, part, cause):
    pipe.text_encoder_2 = None
    tensors = loras.part(loras.for_pipeline(tiny.make_pipeline()), "transformer")
    tensors = {f"transformer.{name}": value for name, value in tensors.items()}
    bundled = {f"bundle_emb.<cat>.{part}": np.zeros((1, 12), "float32")}
    with pytest.raises(InputError, match=rf"bundle_emb.<cat>.{part} .*{cause}.*strict=False.*'<cat>'"):
        pipe.load_lora_weights({**tensors, **bundled})
    pipe.load_lora_weights({**tensors, **bundled}, strict=False)
    assert pipe.get_list_adapters() == {"transformer": ["default_0"]} and not pipe.tokenizer.added_tokens


def test_every_layer_can_be_changed(pipe, plain):
    """One file with a change for each linear layer, convolution and norm of all networks: each acts, fused or not."""
    from ppsd3.adapters.network import adaptable_layers
    from ppsd3.ops import base_of

    networks = {name: getattr(pipe, name) for name in (*NETWORKS, "text_encoder_3")}
    rng, tensors, wanted = np.random.default_rng(0), {}, {}
    for component, network in networks.items():
        own = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        layers = adaptable_layers(network)
        tables = (
            "pos_embed.pos_embed",
            "embedding.weight",
            "shared.weight",
            "relative_attention_bias.weight",
            "position_ids",
        )
        assert {f"{name}.weight" for name in layers} == {name for name in own if not name.endswith((".bias", *tables))}
        for module, layer in layers.items():
            change = loras.normal(rng, *base_of(layer).weight.shape, gain=0.02)
            tensors[f"{component}.{module}.diff"] = change
            wanted[component, f"{module}.weight"] = own[f"{module}.weight"] + change
            if f"{module}.bias" in own:
                tensors[f"{component}.{module}.diff_b"] = change = loras.normal(rng, *own[f"{module}.bias"].shape)
                wanted[component, f"{module}.bias"] = own[f"{module}.bias"] + change
    pipe.load_lora_weights(tensors)
    drawn = draw(pipe)
    expected = tiny.make_pipeline()
    for (component, name), value in wanted.items():
        getattr(expected, component).state_dict()[name].set_value(value)
    close(drawn, draw(expected), 1e-4)
    assert np.abs(drawn - plain).max() > 1e-2
    pipe.fuse_lora()
    for component, network in networks.items():
        for name, tensor in network.state_dict().items():
            key = component, name.replace(".base_layer.", ".")
            if key in wanted:
                np.testing.assert_allclose(tensor.numpy(), wanted[key], atol=1e-6)
    close(draw(pipe), drawn, 1e-4)
    pipe.unfuse_lora()
    pipe.set_adapters("default_0", 0.0)
    np.testing.assert_array_equal(draw(pipe), plain)


def test_what_else_is_in_a_file(pipe, tmp_path):
    tensors = loras.for_pipeline(pipe)
    for text, what in (("[1]", "array|list|object"), ("{", "JSON"), ("[" * 100000, "JSON|levels")):
        file = write(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": text})
        with pytest.raises(CheckpointFormatError, match=f"a.safetensors.*{what}"):
            pipe.load_lora_weights(file)
    with pytest.raises(InputError, match=r"transformer.x.lora_A.weight. is a str"):
        pipe.load_lora_weights({**tensors, "transformer.x.lora_A.weight": "no tensor"})
    with pytest.raises(InputError, match="complex64"):
        pipe.load_lora_weights({name: value.astype("complex64") for name, value in tensors.items()})
    assert not pipe.get_list_adapters()


def test_arguments_that_do_not_fit_are_named(pipe, tmp_path):
    from ppsd3 import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

    tensors, network = loras.for_pipeline(pipe), pipe.transformer
    pipe.load_lora_weights(tensors, adapter_name="a")
    layers = get_peft_model_state_dict(network, "a")
    names, numbers = (object(), b"x", 3, [3]), (object(), "x", [], np.nan)
    paths, dicts = (object(), 3, []), (3, [1], {1: 2})
    calls = {
        "adapter_names": (names, pipe.set_adapters, pipe.delete_adapters, lambda v: pipe.fuse_lora(adapter_names=v)),
        "adapter_weights": (numbers, lambda v: pipe.set_adapters("a", v), lambda v: pipe.set_adapters(["a"], [v])),
        "components": (names, lambda v: pipe.fuse_lora(components=v), lambda v: pipe.unfuse_lora(components=v)),
        "lora_scale": (numbers, lambda v: pipe.fuse_lora(lora_scale=v), network.fuse_lora),
        "pretrained_model_name_or_path_or_dict": (paths, pipe.load_lora_weights, network.load_lora_adapter),
        "network_alphas": (dicts, lambda v: pipe.load_lora_weights(tensors, network_alphas=v)),
        "save_directory": (paths, lambda v: pipe.save_lora_weights(v, "a"), network.save_lora_adapter),
        "weight_name": (names, lambda v: pipe.save_lora_weights(tmp_path, "a", weight_name=v)),
        "transformer_lora_layers": (dicts, lambda v: pipe.save_lora_weights(tmp_path, transformer_lora_layers=v)),
        "adapter_name": (names, network.set_adapter, lambda v: network.save_lora_adapter(tmp_path, v)),
        "weights": (numbers, lambda v: network.set_adapters("a", v), lambda v: network.set_adapters(["a"], [v])),
        "metadata": (dicts, lambda v: network.load_lora_adapter(layers, metadata=v)),
        "peft_model_state_dict": (dicts, lambda v: set_peft_model_state_dict(network, v, "a")),
        "target_modules": (names, lambda v: LoraConfig(target_modules=v)),
        "exclude_modules": (names, lambda v: LoraConfig(exclude_modules=v)),
        "r": ((0, 1.5, "4", True), lambda v: LoraConfig(r=v)),
        "lora_alpha": (numbers, lambda v: LoraConfig(lora_alpha=v)),
        "lora_dropout": ((*numbers, 1, -0.5), lambda v: LoraConfig(lora_dropout=v)),
        "rank_pattern": (dicts, lambda v: LoraConfig(rank_pattern=v)),
    }
    for argument, (values, *those) in calls.items():
        for value in values:
            for call in those:
                with pytest.raises(InputError, match=argument):
                    call(value)
    assert pipe.get_list_adapters() == {name: ["a"] for name in NETWORKS} and not pipe.fused_loras
