"""Directories of ppdiffusers and PaddleNLP, there and back: no edit, no difference."""

import json
import shutil

import numpy as np
import paddle
import pytest
from helpers import paddle_directories as theirs, tiny
from safetensors.numpy import load_file

import ppsd3
from ppsd3.cli.main import main
from ppsd3.models.normalization import AdaLayerNormContinuous
from ppsd3.serialization import SafetensorsFile
from ppsd3.utils.errors import CheckpointFormatError, ConfigError, InputError, WeightMismatchError

DIRECTORIES = {
    "ppdiffusers": {},
    "ppdiffusers with PaddleNLP's towers": {"names": "paddlenlp"},
    "in shards": {"how": "shards", "names": "paddlenlp"},
}


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red circle", num_inference_steps=2, generator=ppsd3.TorchGenerator(0), output_type="np").images


def assert_same(network, other):
    ours, expected = network.state_dict(), other.state_dict()
    assert list(ours) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(ours[name].numpy(), tensor.numpy(), err_msg=name)


@pytest.mark.parametrize("kind", DIRECTORIES)
@pytest.mark.parametrize("load_components", ["all", "on_demand"])
def test_a_pipeline_draws_the_same(pipe, tmp_path, kind, load_components):
    theirs.write_pipeline(tmp_path / "x", pipe, **DIRECTORIES[kind])
    loaded = ppsd3.DiffusionPipeline.from_pretrained(tmp_path / "x", load_components=load_components)
    assert type(loaded).__name__ == "StableDiffusion3Pipeline"
    np.testing.assert_array_equal(draw(loaded), draw(pipe))


@pytest.mark.parametrize("name", theirs.NETWORKS)
@pytest.mark.parametrize("names", ["ppdiffusers", "paddlenlp"])
def test_networks(pipe, tmp_path, name, names):
    network = getattr(pipe, name)
    loaded = type(network).from_pretrained(theirs.write_network(tmp_path / "x", network, names=names))
    assert_same(loaded, network)
    assert dict(loaded.config) == dict(network.config)


@pytest.mark.parametrize("name", theirs.NETWORKS)
def test_bfloat16(pipe, tmp_path, name):
    """numpy has none, so they write unsigned integers."""
    network = getattr(pipe, name)
    loaded = type(network).from_pretrained(theirs.write_network(tmp_path / "x", network, dtype="bfloat16"))
    for key, tensor in network.state_dict().items():
        cut = (tensor.numpy().view(np.uint32) & 0xFFFF0000).view(np.float32)
        np.testing.assert_array_equal(loaded.state_dict()[key].numpy(), cut, err_msg=key)


def test_held_in_16_bits(pipe, tmp_path):
    directory = theirs.write_network(tmp_path / "x", pipe.transformer, dtype=np.float16)
    held = ppsd3.SD3Transformer2DModel.from_pretrained(directory, storage_dtype="float16")
    assert held.storage_dtype == paddle.float16
    name = "transformer_blocks.0.ff.net.0.proj.weight"
    expected = pipe.transformer.state_dict()[name].numpy().astype(np.float16)
    np.testing.assert_array_equal(held.state_dict()[name].numpy(), expected)
    held.save_pretrained(tmp_path / "y", layout="ppdiffusers")
    again = load_file(tmp_path / "y" / "diffusion_paddle_model.safetensors")
    np.testing.assert_array_equal(again[name], expected.T)


@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder"])
def test_a_single_file(pipe, tmp_path, name):
    """The linear layers of a VAE are all square: only the file's format says that they are transposed."""
    network = getattr(pipe, name)
    directory = theirs.write_network(tmp_path / "x", network, names="paddlenlp")
    (file,) = directory.glob("*.safetensors")
    config = {key: value for key, value in theirs.config_of(network).items() if key in network.config}
    options = {"subfolder": name} if name == "text_encoder" else {}
    assert_same(type(network).from_single_file(file, config=config, **options), network)


# ---------------------------------------------------------------------------------------------------------- norm biases


def test_biases_of_norms_are_folded(tmp_path):
    """What a norm with a bias computes before its modulation, its linear layer computes without it."""
    norm = AdaLayerNormContinuous(8, 8)
    tiny.randomize(norm, 0)
    bias = np.random.default_rng(1).standard_normal(8).astype("f4")
    x, conditioning = (paddle.randn(shape) for shape in ([2, 5, 8], [2, 8]))
    scale, shift = norm.linear(paddle.nn.functional.silu(conditioning)).unsqueeze(1).chunk(2, axis=-1)
    expected = (paddle.nn.functional.layer_norm(x, 8, epsilon=1e-6) + paddle.to_tensor(bias)) * (1 + scale) + shift

    model = ppsd3.SD3Transformer2DModel(**{**tiny.TRANSFORMER, "num_attention_heads": 1, "caption_projection_dim": 8})
    model.norm_out.linear.weight.set_value(norm.linear.weight)
    model.norm_out.linear.bias.set_value(norm.linear.bias)
    directory = theirs.write_network(tmp_path / "x", model)
    file = directory / "diffusion_paddle_model.safetensors"
    for turned in (False, True):  # their layout, and what their to_diffusers=True writes
        arrays = {
            name: a.T.copy() if turned and theirs.is_linear(name, a) else a for name, a in load_file(file).items()
        }
        arrays["norm_out.norm.bias"] = bias
        if turned:
            file.unlink()
            file = directory / "diffusion_pytorch_model.safetensors"
        theirs.save_file(arrays, file, {"format": "pt" if turned else "pd"})
        loaded = ppsd3.SD3Transformer2DModel.from_pretrained(directory)
        found = loaded.norm_out(x, conditioning)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=2e-6)
        assert np.abs(found.numpy() - norm(x, conditioning).numpy()).max() > 0.1


def test_both_norms_are_folded_and_the_rest_stays(pipe, tmp_path):
    directory = theirs.write_network(tmp_path / "x", pipe.transformer, norm_bias=0.3)
    loaded = ppsd3.SD3Transformer2DModel.from_pretrained(directory).state_dict()
    changed = {
        name
        for name, tensor in pipe.transformer.state_dict().items()
        if not np.array_equal(loaded[name].numpy(), tensor.numpy())
    }
    layers = ("norm_out.linear", "transformer_blocks.2.norm1_context.linear")
    assert changed == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    arrays = theirs.tensors_of(pipe.transformer, norm_bias=0.3)
    for layer in layers:
        bias = arrays[layer.replace("linear", "norm.bias")].astype("f8")
        weight, added = arrays[f"{layer}.weight"].astype("f8").T, arrays[f"{layer}.bias"].astype("f8")
        width = len(bias)
        weight[width:] += np.diag(bias) @ weight[:width]
        added[width:] += bias + bias * added[:width]
        np.testing.assert_array_equal(loaded[f"{layer}.weight"].numpy(), weight.astype("f4"))
        np.testing.assert_array_equal(loaded[f"{layer}.bias"].numpy(), added.astype("f4"))
    ppsd3.convert(directory, tmp_path / "y")
    assert_same(
        ppsd3.SD3Transformer2DModel.from_pretrained(tmp_path / "y"),
        ppsd3.SD3Transformer2DModel.from_pretrained(directory),
    )


@pytest.mark.parametrize(
    "name, shape", [("norm_out.norm.bias", (3,)), ("norm_out.norm.weight", (32,)), ("norm1.norm.bias", (32,))]
)
def test_what_is_no_bias_of_theirs_is_an_error(pipe, tmp_path, name, shape):
    directory = theirs.write_network(tmp_path / "x", pipe.transformer)
    file = directory / "diffusion_paddle_model.safetensors"
    theirs.save_file({**load_file(file), name: np.ones(shape, "f4")}, file, {"format": "pd"})
    with pytest.raises(WeightMismatchError, match=name):
        ppsd3.SD3Transformer2DModel.from_pretrained(directory)


# ------------------------------------------------------------------------------------------------------- configurations


def edit(directory, **entries):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    return directory


def test_versions_are_no_arguments(pipe, tmp_path):
    directory = theirs.write_network(tmp_path / "x", pipe.vae)
    edit(directory, paddlenlp_version=None, _paddlemix_version="0.3", ppdiffusers_version="0.29.0")
    assert_same(ppsd3.AutoencoderKL.from_pretrained(directory), pipe.vae)
    with pytest.raises(ConfigError, match="conversion"):
        ppsd3.AutoencoderKL.from_pretrained(edit(directory, conversion="x"))


def test_features_of_theirs_that_we_lack(pipe, tmp_path):
    directory = theirs.write_network(tmp_path / "x", pipe.vae)
    with pytest.raises(ConfigError, match=r"no down_block_out_channels.*\[8, 16\]"):
        ppsd3.AutoencoderKL.from_pretrained(edit(directory, down_block_out_channels=[8, 16]))


# -------------------------------------------------------------------------------------------------------------- pickles


def test_pickles_are_refused_with_the_way_out_and_converted(pipe, tmp_path, capsys):
    theirs.write_pipeline(tmp_path / "x", pipe, "pickle", "paddlenlp")
    with pytest.raises(CheckpointFormatError, match=r"model_state.pdparams is a pickle.*`ppsd3 convert"):
        ppsd3.StableDiffusion3Pipeline.from_pretrained(tmp_path / "x")
    assert main(["convert", str(tmp_path / "x"), str(tmp_path / "y")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "y")
    np.testing.assert_array_equal(draw(ppsd3.StableDiffusion3Pipeline.from_pretrained(tmp_path / "y")), draw(pipe))
    ppsd3.convert(tmp_path / "x", tmp_path / "sd3.safetensors")
    assert_same(ppsd3.AutoencoderKL.from_single_file(tmp_path / "sd3.safetensors"), pipe.vae)


@pytest.mark.parametrize("name", theirs.NETWORKS)
def test_one_network_out_of_a_pickle(pipe, tmp_path, name):
    network = getattr(pipe, name)
    directory = theirs.write_network(tmp_path / "x", network, "pickle", "paddlenlp")
    with pytest.raises(CheckpointFormatError, match="`ppsd3 convert"):
        type(network).from_pretrained(directory)
    assert_same(type(network).from_pretrained(ppsd3.convert(directory, tmp_path / "y")), network)


def test_pickles_in_shards_and_of_a_variant(pipe, tmp_path):
    import pickle

    arrays = theirs.tensors_of(pipe.text_encoder_3)
    shards = {f"model_state-{i + 1:05}-of-00002.pdparams": dict(list(arrays.items())[i::2]) for i in (0, 1)}
    directory = theirs.write_network(tmp_path / "x", pipe.text_encoder_3)
    (directory / "model.safetensors").unlink()
    for name, some in shards.items():
        (directory / name).write_bytes(pickle.dumps(some, 4))
    weight_map = {key: name for name, some in shards.items() for key in some}
    (directory / "model_state.pdparams.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(ppsd3.T5EncoderModel.from_pretrained(ppsd3.convert(directory, tmp_path / "y")), pipe.text_encoder_3)
    (directory / "model_state.fp16.pdparams").write_bytes(pickle.dumps({k: a * 2 for k, a in arrays.items()}, 4))
    doubled = ppsd3.T5EncoderModel.from_pretrained(ppsd3.convert(directory, tmp_path / "z", source_variant="fp16"))
    np.testing.assert_array_equal(doubled.shared.weight.numpy(), 2 * pipe.text_encoder_3.shared.weight.numpy())


def test_a_lone_pickle(pipe, tmp_path):
    directory = theirs.write_network(tmp_path / "x", pipe.vae, "pickle")
    file = ppsd3.convert(directory / "model_state.pdparams", tmp_path / "vae.safetensors")
    assert_same(ppsd3.AutoencoderKL.from_single_file(file, config=directory), pipe.vae)
    half = ppsd3.convert(directory / "model_state.pdparams", tmp_path / "half.safetensors", dtype="bfloat16")
    assert {SafetensorsFile(half).info(name).dtype for name in SafetensorsFile(half).keys()} == {"bfloat16"}
    for target, options, message in (
        (tmp_path / "y", {}, "called ....safetensors"),
        (tmp_path / "y.safetensors", {"variant": "fp16"}, "without variant"),
        (tmp_path / "y.safetensors", {"layout": "original"}, "without layout"),
    ):
        with pytest.raises(InputError, match=message):
            ppsd3.convert(directory / "model_state.pdparams", target, **options)
    assert not (tmp_path / "y").exists() and not (tmp_path / "y.safetensors").exists()


# --------------------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("how", ["save_pretrained", "convert"])
def test_what_is_saved_for_them_is_what_they_write(pipe, tmp_path, how):
    theirs.write_pipeline(tmp_path / "theirs", pipe)
    if how == "convert":
        pipe.save_pretrained(tmp_path / "ours")
        shutil.rmtree(tmp_path / "ours" / "tokenizer_3")
        pipe.tokenizer_3.save_pretrained(tmp_path / "ours" / "tokenizer_3")
        (tmp_path / "ours" / "tokenizer_3" / "spiece.model").unlink()
        (tmp_path / "ours" / "tokenizer" / "merges.txt").unlink()
        ppsd3.convert(tmp_path / "ours", tmp_path / "x", layout="ppdiffusers")
    else:
        pipe.save_pretrained(tmp_path / "x", layout="ppdiffusers")
    assert_same_files(tmp_path / "x", tmp_path / "theirs")
    index = json.loads((tmp_path / "x" / "model_index.json").read_text())
    assert index["_ppdiffusers_version"] and "_diffusers_version" not in index
    assert {name: entry for name, entry in index.items() if entry in theirs.CLASSES.values()} == theirs.CLASSES
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        files = {"spiece.model"} if name == "tokenizer_3" else {"vocab.json", "merges.txt"}
        assert files <= {file.name for file in (tmp_path / "x" / name).iterdir()}
    np.testing.assert_array_equal(draw(ppsd3.StableDiffusion3Pipeline.from_pretrained(tmp_path / "x")), draw(pipe))


def assert_same_files(directory, expected):
    """The same weight files with the same names, arrays and format."""
    files = {path.relative_to(expected) for path in expected.rglob("*.safetensors")}
    assert {path.relative_to(directory) for path in directory.rglob("*.safetensors")} == files and files
    for file in files:
        assert SafetensorsFile(directory / file).metadata == SafetensorsFile(expected / file).metadata
        ours, written = load_file(directory / file), load_file(expected / file)
        assert set(ours) == set(written)
        for name, array in written.items():
            assert ours[name].dtype == array.dtype
            np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2", "text_encoder_3"])
def test_towers_for_paddlenlp(pipe, tmp_path, name):
    network = getattr(pipe, name)
    theirs.write_network(tmp_path / "theirs", network, names="paddlenlp")
    network.save_pretrained(tmp_path / "x", layout="paddlenlp")
    assert_same_files(tmp_path / "x", tmp_path / "theirs")
    assert_same(type(network).from_pretrained(tmp_path / "x"), network)
    ppsd3.convert(tmp_path / "x", tmp_path / "y")
    ppsd3.convert(tmp_path / "y", tmp_path / "z", layout="paddlenlp")
    assert_same_files(tmp_path / "z", tmp_path / "theirs")


def test_bfloat16_and_shards_for_them(pipe, tmp_path):
    half = tiny.make_pipeline().transformer.to(dtype="bfloat16")
    half.save_pretrained(tmp_path / "x", layout="ppdiffusers", max_shard_size="30KB", variant="bf16")
    names = {path.name for path in (tmp_path / "x").iterdir()}
    assert "diffusion_paddle_model.safetensors.index.bf16.json" in names and len(names) > 4
    arrays = {k: a for path in (tmp_path / "x").glob("*.safetensors") for k, a in load_file(path).items()}
    assert set(arrays) == set(theirs.tensors_of(pipe.transformer))
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.uint16)}
    loaded = ppsd3.SD3Transformer2DModel.from_pretrained(tmp_path / "x", variant="bf16", paddle_dtype="bfloat16")
    for name, tensor in half.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)


def test_what_cannot_be_saved_for_them(pipe, tmp_path):
    with pytest.raises(InputError, match="layout is 'torch'; a pipeline can be saved as 'diffusers' or 'ppdiffusers'"):
        pipe.save_pretrained(tmp_path / "x", layout="torch")
    with pytest.raises(InputError, match="layout is 'paddlenlp'; a SD3Transformer2DModel can be saved as 'diffusers'"):
        pipe.transformer.save_pretrained(tmp_path / "x", layout="paddlenlp")
    with pytest.raises(InputError, match="int8, which ppdiffusers does not read"):
        tiny.make_pipeline().transformer.quantize("int8").save_pretrained(tmp_path / "x", layout="ppdiffusers")
    pipe.save_pretrained(tmp_path / "y")
    with pytest.raises(InputError, match="layout is 'paddlenlp'"):
        ppsd3.convert(tmp_path / "y", tmp_path / "x", layout="paddlenlp")
    assert not (tmp_path / "x").exists()
