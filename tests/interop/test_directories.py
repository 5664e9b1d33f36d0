"""Directories that the real ppdiffusers and PaddleNLP write load here without an edit; what is saved for them loads
there."""

import json
import shutil

import numpy as np
import paddle
import pytest
from helpers import paddle_directories
from safetensors.numpy import load_file

import ppsd3
from ppsd3.utils.errors import CheckpointFormatError

pytestmark = pytest.mark.interop

PROMPT = "a red circle to the left of a blue square"
TOWERS = {"text_encoder": "CLIPTextModelWithProjection", "text_encoder_2": "CLIPTextModelWithProjection"}
TOWERS["text_encoder_3"] = "T5EncoderModel"
BAR = 0.002 / 255


def draw(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    channels, side = pipe.transformer.config.in_channels, pipe.transformer.config.sample_size
    latents = paddle.to_tensor(rng.standard_normal((1, channels, side, side)).astype("float32"))
    image = pipe(PROMPT, num_inference_steps=4, latents=latents, output_type="np", **options).images
    assert image.std() > 0.05
    return image


def draw_both(ours, theirs):
    """T5 reads as many tokens as CLIP there."""
    return draw(ours, max_sequence_length=theirs.tokenizer_max_length), draw(theirs)


def assert_same(network, other):
    ours, expected = network.state_dict(), other.state_dict()
    assert list(ours) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(ours[name].numpy(), tensor.numpy(), err_msg=name)


@pytest.mark.parametrize(
    "options", [{}, {"safe_serialization": True}, {"to_diffusers": True}, {"variant": "fp16"}], ids=str
)
def test_their_pipeline(theirs, ours, tmp_path, options):
    theirs.save_pretrained(str(tmp_path), **options)
    variant = {"variant": options["variant"]} if "variant" in options else {}
    loaded = ppsd3.StableDiffusion3Pipeline.from_pretrained(tmp_path, **variant)
    np.testing.assert_array_equal(draw(loaded), draw(ours))
    for name in paddle_directories.NETWORKS:
        assert_same(getattr(loaded, name), getattr(ours, name))


def test_their_pickles(theirs, ours, tmp_path):
    theirs.save_pretrained(str(tmp_path / "x"), safe_serialization=False)
    with pytest.raises(CheckpointFormatError, match=r"pdparams is a pickle.*ppsd3 convert"):
        ppsd3.StableDiffusion3Pipeline.from_pretrained(tmp_path / "x")
    ppsd3.convert(tmp_path / "x", tmp_path / "y")
    np.testing.assert_array_equal(draw(ppsd3.StableDiffusion3Pipeline.from_pretrained(tmp_path / "y")), draw(ours))


@pytest.mark.parametrize("name", paddle_directories.NETWORKS)
@pytest.mark.parametrize("options", [{"max_shard_size": "200KB"}, {"safe_serialization": False}], ids=str)
def test_their_networks(their_parts, ours, tmp_path, name, options):
    network = getattr(ours, name)
    their_parts[name].save_pretrained(str(tmp_path / "x"), **options)
    directory = tmp_path / "x"
    if any(path.suffix == ".pdparams" for path in directory.iterdir()):
        directory = ppsd3.convert(directory, tmp_path / "y")
    assert_same(type(network).from_pretrained(directory), network)


@pytest.fixture(scope="module")
def paddlenlp_towers(checkpoint, tmp_path_factory):
    """PaddleNLP's own towers, whose CLIP has other names than that of ppdiffusers."""
    import paddlenlp.transformers

    directory = shutil.copytree(checkpoint, tmp_path_factory.mktemp("paddlenlp") / "shapes")
    return {
        name: getattr(paddlenlp.transformers, class_name).from_pretrained(
            str(directory / name), convert_from_torch=True
        )
        for name, class_name in TOWERS.items()
    }


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"safe_serialization": True}, {"safe_serialization": True, "max_shard_size": "200KB"}, {"save_to_hf": True}],
    ids=str,
)
def test_paddlenlp_towers(paddlenlp_towers, ours, tmp_path, name, options):
    network = getattr(ours, name)
    paddlenlp_towers[name].save_pretrained(str(tmp_path / "x"), **options)
    directory = tmp_path / "x"
    if (directory / "model_state.pdparams").exists():
        directory = ppsd3.convert(directory, tmp_path / "y")
    loaded = type(network).from_pretrained(directory)
    assert_same(loaded, network)
    read = {key: value for key, value in loaded.config.items() if key != "eos_token_id"}
    assert read == {key: network.config[key] for key in read}


def test_biases_of_their_norms(theirs, ours, tmp_path):
    """Theirs draws with the biases; ours has them folded into the layers before."""
    biases = {name: p for name, p in theirs.transformer.named_parameters() if name.endswith("norm.bias")}
    assert len(biases) == 2
    before = draw(theirs)
    rng = np.random.default_rng(1)
    try:
        for bias in biases.values():
            bias.set_value(paddle.to_tensor(0.2 * rng.standard_normal(bias.shape).astype("float32")))
        theirs.save_pretrained(str(tmp_path))
        image, expected = draw_both(ppsd3.StableDiffusion3Pipeline.from_pretrained(tmp_path), theirs)
    finally:
        for bias in biases.values():
            bias.set_value(paddle.zeros_like(bias))
    assert np.abs(expected - before).max() > 0.1
    np.testing.assert_allclose(image, expected, rtol=0, atol=BAR)


@pytest.mark.parametrize("name", ["transformer", "text_encoder_3"])
def test_their_bfloat16(ppdiffusers, their_parts, ours, tmp_path, name):
    their_parts[name].save_pretrained(str(tmp_path / "x"))
    half = type(their_parts[name]).from_pretrained(str(tmp_path / "x"))
    half.to(dtype="bfloat16")
    half.save_pretrained(str(tmp_path / "y"), safe_serialization=True)
    loaded = type(getattr(ours, name)).from_pretrained(tmp_path / "y", paddle_dtype="bfloat16")
    getattr(ours, name).save_pretrained(tmp_path / "z")
    ppsd3.convert(tmp_path / "z", tmp_path / "rounded", dtype="bfloat16")
    expected = type(getattr(ours, name)).from_pretrained(tmp_path / "rounded", paddle_dtype="bfloat16").state_dict()
    for key, tensor in loaded.state_dict().items():
        np.testing.assert_allclose(
            tensor.astype("float32").numpy(), expected[key].astype("float32").numpy(), rtol=2**-7, err_msg=key
        )


def test_the_directories_of_the_default_suite_are_like_these(theirs, ours, tmp_path):
    """``helpers.paddle_directories`` writes what ppdiffusers writes."""
    theirs.save_pretrained(str(tmp_path / "real"))
    paddle_directories.write_pipeline(tmp_path / "made", ours)
    for path in (tmp_path / "real").rglob("*.safetensors"):
        made, real = load_file(tmp_path / "made" / path.relative_to(tmp_path / "real")), load_file(path)
        assert set(made) == set(real)
        for name, array in real.items():
            np.testing.assert_array_equal(made[name], array, err_msg=name)
    for name in paddle_directories.NETWORKS:
        made, real = (json.loads((tmp_path / where / name / "config.json").read_text()) for where in ("made", "real"))
        assert {key: made[key] for key in real if key in made} == {
            key: value if not key.startswith("_name") else "somewhere" for key, value in real.items() if key in made
        }
        assert {key for key in made if "version" in key} <= set(real)
    index = json.loads((tmp_path / "real" / "model_index.json").read_text())
    assert {key: value for key, value in index.items() if isinstance(value, list)} == paddle_directories.CLASSES


# ----------------------------------------------------------------------------------------------------------- for theirs


@pytest.mark.parametrize("how", ["save_pretrained", "convert"])
def test_ours_for_them(ppdiffusers, theirs, ours, checkpoint, tmp_path, how):
    if how == "convert":
        ppsd3.convert(checkpoint, tmp_path / "x", layout="ppdiffusers")
    else:
        ours.save_pretrained(tmp_path / "x", layout="ppdiffusers", max_shard_size="300KB")
    loaded = ppdiffusers.StableDiffusion3Pipeline.from_pretrained(str(tmp_path / "x"))
    image, expected = draw_both(ours, loaded)
    np.testing.assert_array_equal(expected, draw(theirs))
    np.testing.assert_allclose(image, expected, rtol=0, atol=BAR)
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        options = {"padding": "max_length", "max_length": 77, "truncation": True}
        texts = [PROMPT, "two Green triangles, 3 stars!", ""]
        expected = getattr(ours, name)(texts, **options).input_ids
        np.testing.assert_array_equal(getattr(loaded, name)(texts, **options)["input_ids"], expected)


@pytest.mark.parametrize("name, dtype", [*((name, "float32") for name in TOWERS), ("text_encoder_3", "bfloat16")])
def test_ours_for_paddlenlp(paddlenlp_towers, ours, checkpoint, tmp_path, name, dtype):
    ppsd3.convert(checkpoint / name, tmp_path / "x", layout="paddlenlp", dtype=dtype)
    theirs = paddlenlp_towers[name]
    loaded = type(theirs).from_pretrained(str(tmp_path / "x"))
    state = loaded.state_dict()
    assert set(state) == set(theirs.state_dict())
    for key, tensor in theirs.state_dict().items():
        rounding = 0 if dtype == "float32" else 2**-8
        found = state[key].astype("float32").numpy()
        np.testing.assert_allclose(found, tensor.numpy(), rtol=rounding, atol=0, err_msg=key)


def test_ours_in_bfloat16(ppdiffusers, ours, checkpoint, tmp_path):
    ppsd3.convert(checkpoint / "transformer", tmp_path / "x", layout="ppdiffusers", dtype="bfloat16")
    loaded = ppdiffusers.SD3Transformer2DModel.from_pretrained(str(tmp_path / "x"), paddle_dtype=paddle.float32)
    name = "transformer_blocks.0.ff.net.0.proj.weight"
    expected = ours.transformer.state_dict()[name].numpy().T
    np.testing.assert_allclose(loaded.state_dict()[name].astype("float32").numpy(), expected, rtol=2**-8)
