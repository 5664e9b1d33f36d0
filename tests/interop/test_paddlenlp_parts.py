"""Text encoders and tokenizers of PaddleNLP and ppdiffusers: beside ours, in a pipeline of ours, and converted."""

import copy
import importlib
import json
import logging
import pathlib
import re
import shutil

import numpy as np
import paddle
import pytest
from helpers import loras, markdown

import ppsd3
from ppsd3.utils.errors import InputError

pytestmark = pytest.mark.interop

TOWERS = {"text_encoder": 1e-5, "text_encoder_2": 1e-5, "text_encoder_3": 1e-4}  # T5's numbers reach several hundreds
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
PROMPTS = ["a red circle to the left of a blue square", "", "Blueish  squarezz, 3 É circles!\n<b>", "red " * 100]
CALL = {"num_inference_steps": 4, "output_type": "np"}


@pytest.fixture(scope="module", params=["ppdiffusers", "paddlenlp"])
def parts(request, their_parts, checkpoint, tmp_path_factory):
    """Text encoders and tokenizers of one of the two libraries."""
    if request.param == "ppdiffusers":
        return {name: their_parts[name] for name in (*TOWERS, *TOKENIZERS)}
    library = importlib.import_module("paddlenlp.transformers")
    directory = shutil.copytree(checkpoint, tmp_path_factory.mktemp("paddlenlp") / "shapes")
    parts = {}
    for name in (*TOWERS, *TOKENIZERS):
        kind = getattr(library, type(their_parts[name]).__name__)
        options = {"convert_from_torch": True} if name in TOWERS else {}
        parts[name] = kind.from_pretrained(str(directory / name), **options)
        if name in TOWERS:
            parts[name].eval()
    return parts


@pytest.fixture
def pipe(ours, parts):
    """Our pipeline over their text encoders and tokenizers."""
    made = ppsd3.StableDiffusion3Pipeline(**{**ours.components, **parts})
    made.set_progress_bar_config(disable=True)
    return made


def token_ids(tokenizer, prompts=PROMPTS, length=32):
    return np.asarray(tokenizer(prompts, padding="max_length", max_length=length, truncation=True).input_ids)


def draw(pipe, prompt=PROMPTS[0], **options):
    return pipe(prompt, generator=ppsd3.TorchGenerator(3), **{**CALL, **options}).images


# ---------------------------------------------------------------------------------------------------------- conversion


@pytest.mark.parametrize("name", TOWERS)
def test_towers(ours, parts, name):
    """Ours, theirs, and theirs converted, which is ours to the last bit."""
    own, other = getattr(ours, name), parts[name]
    converted = ppsd3.from_paddlenlp(other)
    assert type(converted) is type(own) and converted.config == own.config and not converted.training
    ids = paddle.to_tensor(token_ids(getattr(ours, name.replace("text_encoder", "tokenizer"))))
    expected, got = own(ids, output_hidden_states=True), other(ids, output_hidden_states=True)
    again = converted(ids, output_hidden_states=True)
    states = got.hidden_states if hasattr(got, "hidden_states") else got[1]
    assert len(states) == len(expected.hidden_states)
    for one, two, three in zip(expected.hidden_states, states, again.hidden_states):
        np.testing.assert_allclose(two.numpy(), one.numpy(), rtol=0, atol=TOWERS[name] * max(1, float(one.abs().max())))
        assert np.array_equal(three.numpy(), one.numpy())
    assert np.array_equal(again[0].numpy(), expected[0].numpy())
    np.testing.assert_allclose(got[0].numpy(), expected[0].numpy(), rtol=0, atol=TOWERS[name])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(ours, parts, name):
    converted = ppsd3.from_paddlenlp(parts[name])
    assert type(converted) is type(getattr(ours, name))
    expected = token_ids(getattr(ours, name))
    assert np.array_equal(token_ids(converted), expected)
    assert np.array_equal(token_ids(parts[name]), expected)


def test_a_conversion_owns_its_weights(parts):
    before = {name: tensor.numpy() for name, tensor in parts["text_encoder"].state_dict().items()}
    converted = ppsd3.from_paddlenlp(parts["text_encoder"])
    with paddle.no_grad():
        for tensor in converted.state_dict().values():
            tensor.scale_(2.0)
    for name, tensor in parts["text_encoder"].state_dict().items():
        assert np.array_equal(tensor.numpy(), before[name]), name


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_3"])
def test_dtype(parts, name):
    half = copy.deepcopy(parts[name])
    half.to(dtype="float16")
    converted = ppsd3.from_paddlenlp(half)
    assert converted.dtype == paddle.float16
    dtypes = {tensor.dtype for key, tensor in converted.state_dict().items() if ".wo." in key}
    assert dtypes <= {paddle.float32} and bool(dtypes) == (name == "text_encoder_3")


def test_what_is_not_taken(parts, their_parts, ours):
    assert ppsd3.from_paddlenlp(ours.text_encoder) is ours.text_encoder
    for part in (their_parts["transformer"], their_parts["scheduler"], None, ours.vae):
        with pytest.raises(InputError, match=r"takes a CLIPTextModelWithProjection, .*not a"):
            ppsd3.from_paddlenlp(part)


# -------------------------------------------------------------------------------------------------------- in a pipeline


def test_pictures(ours, pipe):
    np.testing.assert_allclose(draw(pipe), draw(ours), rtol=0, atol=0.005 / 255)


def test_prompts_are_kept(ours, pipe):
    cache = ppsd3.PromptCache()
    pipe.enable_prompt_cache(cache)
    first, second = draw(pipe), draw(pipe)
    assert cache.hits and np.array_equal(first, second)
    np.testing.assert_allclose(first, draw(ours), rtol=0, atol=0.005 / 255)


def test_moving(ours, pipe):
    before = draw(pipe)
    assert pipe.to("cpu").to(dtype="float32") is pipe
    assert np.array_equal(draw(pipe), before)


def test_what_is_cut_off_is_said(ours, pipe, caplog):
    long = "red circle " * 40
    said = []
    for one in (ours, pipe):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            one.encode_prompt(long, None, None, max_sequence_length=32)
        said.append([r.getMessage() for r in caplog.records if "cut the end off" in r.getMessage()])
    assert len(said[0]) == len(said[1]) == 3
    for one, two in zip(*said):
        assert one.split("removed")[0].count("red") <= two.count("red") and "was removed" in two


def test_saved_pipeline(ours, pipe, tmp_path):
    """It holds ours: no pickle, and the same picture as the original checkpoint gives."""
    pipe.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.rglob("*.pdparams"))
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["text_encoder_3"] == ["transformers", "T5EncoderModel"]
    again = ppsd3.StableDiffusion3Pipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(again), draw(ours))


@pytest.mark.parametrize("name", ["transformer", "vae", "scheduler"])
def test_a_part_that_cannot_be_saved(ours, their_parts, tmp_path, name):
    pipe = ppsd3.StableDiffusion3Pipeline(**{**ours.components, name: their_parts[name]})
    with pytest.raises(InputError, match=f"'{name}' is a ppdiffusers .*class of that name of ppsd3"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_the_code_of_the_guide(tmp_path, monkeypatch):
    import paddlenlp.transformers as library

    page = pathlib.Path(__file__).parents[2] / "docs" / "guide" / "components.md"
    blocks = markdown.blocks(page.read_text(encoding="utf-8"))
    (block,) = [block for block in blocks if "import T5EncoderModel" in block.code]
    own = ppsd3.T5EncoderModel.from_pretrained("shapes", subfolder="text_encoder_3")
    own.save_pretrained(tmp_path / "path" / "to" / "t5", layout="paddlenlp")
    monkeypatch.chdir(tmp_path)
    names = {"ppsd3": ppsd3}
    exec(compile(block.code, str(page), "exec"), names)
    assert isinstance(names["t5"], library.T5EncoderModel) and type(names["pipe"].text_encoder_3) is type(own)


# ------------------------------------------------------------------------------------ what needs ours says what to call


def convert(pipe, *names):
    for name in names:
        setattr(pipe, name, ppsd3.from_paddlenlp(getattr(pipe, name)))


def refuses(name):
    return pytest.raises(
        InputError, match=re.escape(f"Convert it: pipe.{name} = ppsd3.from_paddlenlp(pipe.{name}).") + "$"
    )


def test_int8(pipe):
    with refuses("text_encoder_3"):
        pipe.quantize("int8", components="text_encoder_3")
    plain = draw(pipe)
    convert(pipe, "text_encoder_3")
    pipe.quantize("int8", components="text_encoder_3")
    assert 0 < np.abs(draw(pipe) - plain).max() < 0.5


def test_lora(ours, pipe):
    shapes = loras.shapes_of(ours.text_encoder, ("q_proj", "fc1"))
    lora = {f"text_encoder.{key}": value for key, value in loras.low_rank(shapes).items()}
    with refuses("text_encoder"):
        pipe.load_lora_weights(lora)
    with pytest.raises(InputError, match=r"Convert it with ppsd3\.from_paddlenlp\.$"):
        ppsd3.add_adapter(pipe.text_encoder, ppsd3.LoraConfig(target_modules=("q_proj",)))
    plain = draw(pipe)
    convert(pipe, "text_encoder")
    pipe.load_lora_weights(lora)
    assert np.abs(draw(pipe) - plain).max() > 0.01
    pipe.unload_lora_weights()
    np.testing.assert_allclose(draw(pipe), plain, rtol=0, atol=0.005 / 255)


def test_textual_inversion(ours, pipe):
    row = ours.text_encoder.get_input_embeddings().weight.numpy()[[token_ids(ours.tokenizer, ["red"])[0, 1]]]
    for name in ("text_encoder", "tokenizer"):
        with refuses(name):
            pipe.load_textual_inversion(row, token="<my-red>", text_encoder="text_encoder")
        convert(pipe, name)
    pipe.load_textual_inversion(row, token="<my-red>", text_encoder="text_encoder")
    learnt, wanted = (pipe.encode_prompt(f"a {word} circle", "x", "x")[0].numpy() for word in ("<my-red>", "red"))
    np.testing.assert_allclose(learnt, wanted, rtol=0, atol=1e-6)


def test_prompts_with_weights(ours, pipe):
    pipe.prompt_reader = ppsd3.WeightedPrompts()
    for name in TOKENIZERS:
        with refuses(name):
            draw(pipe, "a (red:1.4) circle")
        convert(pipe, name)
    own = ppsd3.StableDiffusion3Pipeline(**ours.components)
    own.set_progress_bar_config(disable=True)
    own.prompt_reader = ppsd3.WeightedPrompts()
    np.testing.assert_allclose(
        draw(pipe, "a (red:1.4) circle"), draw(own, "a (red:1.4) circle"), rtol=0, atol=0.005 / 255
    )
