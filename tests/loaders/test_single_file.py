"""Pipelines and networks out of single files, alone and with the rest in other files."""

import numpy as np
import paddle
import pytest
from helpers import tiny
from helpers.originals import T5_PREFIX, read, scale_to_float8, single_file, small_published_models, write

import ppsd3
from ppsd3.utils.errors import CheckpointFormatError, CheckpointNotFoundError, InputError

NETWORKS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
PREFIX = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": T5_PREFIX,
}
WITHOUT_TEXT = dict.fromkeys([*PREFIX, "tokenizer", "tokenizer_2", "tokenizer_3"])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(pipeline, its file in the original layout without any configuration, its directory)."""
    directory = tmp_path_factory.mktemp("published")
    parts = {**tiny.make_components(), **small_published_models()}
    pipe = ppsd3.StableDiffusion3Pipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(directory / "diffusers")
    return pipe, single_file(directory / "diffusers", directory / "sd3.safetensors"), directory / "diffusers"


@pytest.fixture
def without_text(published, tmp_path):
    """A file like those of SD3.5: transformer and VAE."""
    tensors = {name: value for name, value in read(published[1]).items() if not name.startswith("text_encoders.")}
    return write(tmp_path / "sd3.5.safetensors", tensors)


def tower(published, name, path):
    """ComfyUI's file of one text encoder."""
    prefix = PREFIX[name]
    tensors = read(published[1]).items()
    return write(path, {key[len(prefix) :]: value for key, value in tensors if key.startswith(prefix)})


def assert_same_weights(network, other):
    ours, theirs = network.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name].numpy(), theirs[name].numpy(), err_msg=name)


def tokenizers(pipe):
    return {name: getattr(pipe, name) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")}


def test_everything_from_shapes(published):
    pipe, file, _ = published
    loaded = ppsd3.StableDiffusion3Pipeline.from_single_file(file, **tokenizers(pipe))
    for name in NETWORKS:
        network, original = getattr(loaded, name), getattr(pipe, name)
        assert_same_weights(network, original)
        assert not network.training
    assert dict(loaded.transformer.config) == dict(pipe.transformer.config)
    assert loaded.vae.config.scaling_factor == 1.5305 and loaded.vae.config.shift_factor == 0.0609
    assert loaded.text_encoder.config.hidden_act == "quick_gelu" and loaded.text_encoder_2.config.hidden_act == "gelu"
    assert loaded.scheduler.config.shift == 3.0


def test_the_same_picture(published):
    pipe, file, directory = published
    loaded = ppsd3.StableDiffusion3Pipeline.from_single_file(file, config=directory)
    loaded.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "height": 8, "width": 8, "max_sequence_length": 16, "output_type": "np"}
    pictures = [p("a red circle", generator=ppsd3.TorchGenerator(0), **call).images for p in (pipe, loaded)]
    np.testing.assert_array_equal(*pictures)


def test_text_encoders_in_files_of_their_own(published, without_text, tmp_path):
    pipe = published[0]
    towers = {name: str(tower(published, name, tmp_path / f"{name}.safetensors")) for name in PREFIX}
    loaded = ppsd3.StableDiffusion3Pipeline.from_single_file(without_text, **towers, **tokenizers(pipe))
    for name in NETWORKS:
        assert_same_weights(getattr(loaded, name), getattr(pipe, name))


def test_a_directory_and_an_object_in_the_place_of_the_files(published):
    pipe, file, directory = published
    loaded = ppsd3.StableDiffusion3Pipeline.from_single_file(
        file,
        vae=pipe.vae,
        text_encoder=str(directory / "text_encoder"),
        tokenizer=str(directory / "tokenizer"),
        tokenizer_2=pipe.tokenizer_2,
        text_encoder_3=None,
        scheduler=str(directory / "scheduler"),
    )
    assert loaded.vae is pipe.vae and loaded.text_encoder_3 is None and loaded.tokenizer_3 is None
    assert_same_weights(loaded.text_encoder, pipe.text_encoder)
    assert loaded.tokenizer(["red"]).input_ids.tolist() == pipe.tokenizer(["red"]).input_ids.tolist()


def test_what_is_missing_is_named_at_once(published, without_text):
    with pytest.raises(
        CheckpointFormatError,
        match=r"has transformer, vae, and StableDiffusion3Pipeline also needs text_encoder, text_encoder_2, "
        r"text_encoder_3\. Pass text_encoder='path/to/file\.safetensors'",
    ):
        ppsd3.StableDiffusion3Pipeline.from_single_file(without_text)
    with pytest.raises(
        CheckpointFormatError, match=r"also needs tokenizer, tokenizer_2, tokenizer_3.*(spiece|vocab.json)"
    ):
        ppsd3.StableDiffusion3Pipeline.from_single_file(published[1])
    pipe = ppsd3.StableDiffusion3Pipeline.from_single_file(without_text, **WITHOUT_TEXT)
    assert pipe.text_encoder is None and pipe.tokenizer is None


def test_arguments_that_cannot_be_used(published, tmp_path):
    file, directory = published[1:]
    load = ppsd3.StableDiffusion3Pipeline.from_single_file
    with pytest.raises(InputError, match="has no argument 'unet'"):
        load(file, unet=None)
    with pytest.raises(InputError, match="int8"):
        load(file, config=directory, paddle_dtype="int8")
    with pytest.raises(CheckpointNotFoundError, match=r"There is no file .*nowhere"):
        load(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointNotFoundError, match="from_pretrained"):
        load(directory)
    with pytest.raises(CheckpointNotFoundError, match="from_single_file"):
        ppsd3.StableDiffusion3Pipeline.from_pretrained(file)


@pytest.mark.parametrize("name, class_", [("transformer", ppsd3.SD3Transformer2DModel), ("vae", ppsd3.AutoencoderKL)])
def test_one_network(published, name, class_):
    model = class_.from_single_file(published[1])
    assert_same_weights(model, getattr(published[0], name))


def test_one_of_two_clip_towers(published, tmp_path):
    pipe, file, directory = published
    with pytest.raises(InputError, match=r"has text_encoder and text_encoder_2.*subfolder='text_encoder'"):
        ppsd3.CLIPTextModelWithProjection.from_single_file(file)
    with pytest.raises(InputError, match="subfolder is 'vae'"):
        ppsd3.CLIPTextModelWithProjection.from_single_file(file, subfolder="vae")
    model = ppsd3.CLIPTextModelWithProjection.from_single_file(file, subfolder="text_encoder_2")
    assert_same_weights(model, pipe.text_encoder_2)
    alone = tower(published, "text_encoder_2", tmp_path / "clip_g.safetensors")
    model = ppsd3.CLIPTextModelWithProjection.from_single_file(alone, config=directory / "text_encoder_2")
    assert model.config.hidden_act == "gelu"


VISION = {
    "transformers": ("vision_model.embeddings.position_ids", "vision_model.encoder.layers.0.mlp.fc1.weight"),
    "open_clip": ("visual.transformer.resblocks.0.ln_1.weight", "visual.proj", "visual.class_embedding", "logit_bias"),
}


@pytest.mark.parametrize("name, layout", [("text_encoder", "transformers"), ("text_encoder_2", "open_clip")])
def test_a_whole_clip_serves_as_its_text_tower(published, tmp_path, name, layout):
    """The tower for pictures is left out, and the projection of CLIP-L, by which it is compared with texts."""
    pipe = published[0]
    tensors = read(tower(published, name, tmp_path / "clip.safetensors"))
    tensors.update({key: np.ones((2, 2), "float32") for key in ("logit_scale", *VISION[layout])})
    if name == "text_encoder":
        width = pipe.text_encoder.config.hidden_size
        tensors.update({"visual_projection.weight": np.ones((width, 4), "float32")})
        tensors["text_projection.weight"] = np.full((width, width), 0.5, "float32")
    without = getattr(pipe, name)
    if name == "text_encoder":  # by its width, and so is the tiny one of bigG
        file = write(tmp_path / "whole.safetensors", tensors)
        model = ppsd3.CLIPTextModelWithProjection.from_single_file(file)
        without = ppsd3.CLIPTextModelWithProjection.from_single_file(tmp_path / "clip.safetensors")
        assert_same_weights(model, without)
        assert dict(model.config) == dict(without.config)
        whole = ppsd3.StableDiffusion3Pipeline.from_single_file(published[1], **{name: str(file)}, **tokenizers(pipe))
        assert_same_weights(getattr(whole, name), without)
    prefixed = {PREFIX[name] + key: value for key, value in tensors.items()}
    others = {key: value for key, value in read(published[1]).items() if not key.startswith(PREFIX[name])}
    together = write(tmp_path / "all.safetensors", {**others, **prefixed})
    whole = ppsd3.StableDiffusion3Pipeline.from_single_file(together, **tokenizers(pipe))
    assert_same_weights(getattr(whole, name), without)


def test_a_tower_for_pictures_alone_is_none(tmp_path):
    file = write(tmp_path / "vision.safetensors", {key: np.ones((2, 2), "float32") for key in VISION["transformers"]})
    with pytest.raises(CheckpointFormatError, match=r"vision.safetensors is no part of Stable Diffusion 3"):
        ppsd3.CLIPTextModelWithProjection.from_single_file(file)


def test_configurations(published):
    pipe, file, directory = published
    for config in (directory, directory / "transformer", dict(pipe.transformer.config)):
        model = ppsd3.SD3Transformer2DModel.from_single_file(file, config=config, paddle_dtype="float16")
        assert dict(model.config) == dict(pipe.transformer.config) and model.dtype == paddle.float16


def test_diffusers_names_in_a_single_file(published):
    file = published[2] / "transformer" / "diffusion_pytorch_model.safetensors"
    assert_same_weights(ppsd3.SD3Transformer2DModel.from_single_file(file), published[0].transformer)


def test_t5_in_scaled_8_bit_floats(published, tmp_path):
    tensors, meant = scale_to_float8(read(published[1]), T5_PREFIX)
    file = write(tmp_path / "fp8.safetensors", tensors)
    model = ppsd3.T5EncoderModel.from_single_file(file)
    assert len(meant) > 10
    state = model.state_dict()
    for name, values in meant.items():
        np.testing.assert_array_equal(state[name[len(T5_PREFIX) :]].numpy(), values)
    ids = np.array([[5, 6, 7, 1]])
    expected, found = (m(ids).last_hidden_state.numpy() for m in (published[0].text_encoder_3, model))
    assert 0 < np.abs(found - expected).max() < 0.2 * np.abs(expected).max()


def test_a_file_that_does_not_fit(published, tmp_path):
    tensors = read(published[1])
    del tensors["model.diffusion_model.final_layer.linear.bias"]
    file = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(ValueError, match=r"1 missing from the checkpoint:\n    proj_out\.bias"):
        ppsd3.SD3Transformer2DModel.from_single_file(file)


def test_clip_tokenizers_are_built_in(published, tmp_path):
    """For an encoder with CLIP's 49408 tokens."""
    config = {**tiny.CLIP_L, "hidden_size": 64, "num_attention_heads": 1, "projection_dim": 64, "vocab_size": 49408}
    encoder = ppsd3.CLIPTextModelWithProjection(**config)
    tensors = {PREFIX["text_encoder"] + name: value.numpy() for name, value in encoder.state_dict().items()}
    tensors.update({k: v for k, v in read(published[1]).items() if not k.startswith("text_encoders.")})
    rest = {name: None for name in WITHOUT_TEXT if name not in ("text_encoder", "tokenizer")}
    pipe = ppsd3.StableDiffusion3Pipeline.from_single_file(write(tmp_path / "x.safetensors", tensors), **rest)
    assert pipe.tokenizer(["a photo of a cat"]).input_ids[0, :8].tolist() == [
        49406,
        320,
        1125,
        539,
        320,
        2368,
        49407,
        49407,
    ]
    assert ppsd3.CLIPTokenizer.published("!").pad_token_id == 0


def test_weights_held_in_16_bits(published):
    pipe, file, directory = published
    loaded = ppsd3.StableDiffusion3Pipeline.from_single_file(file, config=directory, storage_dtype="float16")
    weight = loaded.transformer.context_embedder.weight
    assert weight.dtype == paddle.float16 and loaded.transformer.dtype == paddle.float32
    expected = pipe.transformer.context_embedder.weight.numpy().astype("float16")
    np.testing.assert_array_equal(weight.numpy(), expected)
    with pytest.raises(InputError, match="storage_dtype"):
        ppsd3.StableDiffusion3Pipeline.from_single_file(file, config=directory, storage_dtype="int8")
