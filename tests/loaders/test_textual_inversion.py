"""Words that the CLIP towers learn: the right ids and features, in all that reads prompts, and clear refusals."""

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3 import DiffusionPipeline, PromptCache, StableDiffusion3Img2ImgPipeline, TorchGenerator, WeightedPrompts
from ppsd3.serialization.readers import SafetensorsFile
from ppsd3.serialization.tensors import from_numpy
from ppsd3.serialization.writers import write_tensors
from ppsd3.utils.errors import CheckpointFormatError, CheckpointNotFoundError, InputError, WeightMismatchError

VOCABULARY = 521
WIDTHS = {"clip_l": 16, "clip_g": 12}


@pytest.fixture
def pipe():
    return tiny.make_pipeline()


def vectors(width, count=2, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width)).astype("float32")


def both(count=2, seed=0):
    return {key: vectors(width, count, seed) for key, width in WIDTHS.items()}


def write(path, tensors, metadata=None):
    with open(path, "wb") as file:
        write_tensors(file, {name: from_numpy(np.array(value)) for name, value in tensors.items()}, metadata)
    return path


def condition(pipe, prompt="a <cat> red", **options):
    embeds, _, pooled, _ = pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False, **options)
    return np.concatenate([embeds.numpy().ravel(), pooled.numpy().ravel()])


def table(tower):
    return tower.get_input_embeddings().weight.numpy()


def ids(tokenizer, text):
    return [token for token, _, _ in tokenizer.spans(text)]


def test_a_word_of_vocabulary_rows_is_that_word(pipe):
    """The rows of "red" under another name give the features of "red", pooled ones included, wherever the word is."""
    (red,) = ids(pipe.tokenizer, "red")
    rows = {"clip_l": table(pipe.text_encoder)[[red]], "clip_g": table(pipe.text_encoder_2)[[red]]}
    pipe.load_textual_inversion(rows, token="<my-red>")
    for prompt in ("a {} circle", "{}", "a circle, {}", "{} {}"):
        wanted = pipe.encode_prompt(prompt.format("red", "red"), None, "x", do_classifier_free_guidance=False)
        learnt = pipe.encode_prompt(prompt.format("<my-red>", "<my-red>"), None, "x", do_classifier_free_guidance=False)
        for one, other in ((wanted[0], learnt[0]), (wanted[2], learnt[2])):
            np.testing.assert_allclose(other.numpy(), one.numpy(), atol=1e-6)


def test_pooling_of_configurations_that_name_no_end(pipe):
    """eos_token_id 2 means the largest id, which an added token's would be."""
    pipe.text_encoder.register_to_config(eos_token_id=2)
    before = condition(pipe, "a red circle")
    pipe.load_textual_inversion(both(), token="<cat>")
    np.testing.assert_allclose(condition(pipe, "a red circle"), before, atol=1e-6)
    tokens = pipe.tokenizer("a <cat>").input_ids
    output = pipe.text_encoder(tokens)
    end = list(tokens[0]).index(pipe.tokenizer.eos_token_id)
    wanted = pipe.text_encoder.text_projection(output.last_hidden_state[:, end])
    np.testing.assert_allclose(output.text_embeds.numpy(), wanted.numpy(), atol=1e-6)


def test_a_word_of_several_vectors(pipe):
    embedding = both(3)
    pipe.load_textual_inversion(embedding, token="<Cat>")
    for tower, tokenizer, key in (
        ("text_encoder", pipe.tokenizer, "clip_l"),
        ("text_encoder_2", pipe.tokenizer_2, "clip_g"),
    ):
        new = [VOCABULARY, VOCABULARY + 1, VOCABULARY + 2]
        red = ids(tokenizer, "red")
        assert list(tokenizer.added_tokens.items()) == list(zip(["<Cat>", "<Cat>_1", "<Cat>_2"], new))
        for text in ("red <Cat> red", "red<cat>red", "red <CAT>  red"):
            assert ids(tokenizer, text) == red + new + red
        row = tokenizer("<Cat>").input_ids[0]
        assert list(row[:5]) == [519, *new, 520] and len(row) == 77
        cut = tokenizer("red " * 73 + "<Cat> red")
        assert cut.input_ids[0][-2] == new[1] and cut.truncated[0].strip() == "<Cat> red"
        np.testing.assert_array_equal(table(getattr(pipe, tower))[VOCABULARY:], embedding[key])
        assert getattr(pipe, tower).config.vocab_size == VOCABULARY + 3


def test_one_vector_for_each_token(pipe):
    rows = both(2)
    pipe.load_textual_inversion(rows, token=["<s0>", "<s1>"])
    assert ids(pipe.tokenizer, "<s1><s0>") == [VOCABULARY + 1, VOCABULARY]
    pipe.unload_textual_inversion()
    pipe.load_textual_inversion(rows["clip_l"], ["<s0>", "<s1>"], pipe.tokenizer, pipe.text_encoder)  # as for SDXL
    pipe.load_textual_inversion(
        paddle.to_tensor(rows["clip_g"]), token=["<s0>", "<s1>"], text_encoder=pipe.text_encoder_2
    )
    assert list(pipe.tokenizer.added_tokens) == list(pipe.tokenizer_2.added_tokens) == ["<s0>", "<s1>"]
    with pytest.raises(InputError, match="2 vectors, and there are 3 tokens"):
        pipe.load_textual_inversion(rows, token=["<a>", "<b>", "<c>"])


def test_files(pipe, tmp_path):
    write(tmp_path / "one.safetensors", {"<one>": vectors(16, 1)[0]})
    write(tmp_path / "two.safetensors", {"emb_params": vectors(12)})
    write(tmp_path / "both.safetensors", both())
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "learned_embeds.safetensors", {"<four>": vectors(16)})
    names = ["one.safetensors", "two.safetensors", "both.safetensors", "folder"]
    pipe.load_textual_inversion([tmp_path / name for name in names], token=[None, None, "<three>", None])
    assert list(pipe.tokenizer.added_tokens) == ["<one>", "<three>", "<three>_1", "<four>", "<four>_1"]
    assert list(pipe.tokenizer_2.added_tokens) == ["two", "two_1", "<three>", "<three>_1"]
    pipe.load_textual_inversion(str(tmp_path / "both.safetensors"), token="five", text_encoder="text_encoder_2")
    assert "five" in pipe.tokenizer_2.added_tokens and "five" not in pipe.tokenizer.added_tokens
    webui = {"string_to_param": {"*": vectors(16)}, "name": "six"}
    pipe.load_textual_inversion(webui)
    assert "six_1" in pipe.tokenizer.added_tokens


def test_unloading_gives_everything_back(pipe):
    before, tokens = condition(pipe), pipe.tokenizer("a <cat> <dog>").input_ids
    tables = [table(pipe.text_encoder), table(pipe.text_encoder_2)]
    pipe.load_textual_inversion(both(3), token="<cat>")
    pipe.load_textual_inversion(both(2, seed=1), token="<dog>")
    dog = condition(pipe, "a <dog>")
    pipe.unload_textual_inversion("<cat>")
    assert list(pipe.tokenizer.added_tokens.items()) == [("<dog>", VOCABULARY), ("<dog>_1", VOCABULARY + 1)]
    np.testing.assert_allclose(condition(pipe, "a <dog>"), dog, atol=1e-6)
    with pytest.raises(InputError, match=r"no textual inversion '<cat>' to unload.*<dog>"):
        pipe.unload_textual_inversion(["<cat>", "<dog>"])
    pipe.unload_textual_inversion(text_encoder="text_encoder_2")
    assert not pipe.tokenizer_2.added_tokens and pipe.tokenizer.added_tokens
    pipe.unload_textual_inversion()
    np.testing.assert_array_equal(pipe.tokenizer("a <cat> <dog>").input_ids, tokens)
    for tower, rows in zip((pipe.text_encoder, pipe.text_encoder_2), tables):
        np.testing.assert_array_equal(table(tower), rows)
        assert tower.config.vocab_size == VOCABULARY
    np.testing.assert_array_equal(condition(pipe), before)
    with pytest.raises(InputError, match="no textual inversion any"):
        pipe.unload_textual_inversion()


def test_weighted_prompts_weigh_all_of_its_vectors(pipe):
    pipe.load_textual_inversion(both(2), token="<cat>")
    pipe.prompt_reader = WeightedPrompts()
    tokens = pipe.prompt_reader.read("tokenizer", pipe.tokenizer, ["a (<cat>:1.5) red"], 77, "", True)
    assert list(tokens.weights[0, 0, :6]) == [1, 1, 1.5, 1.5, 1, 1]
    plain = condition(pipe, "a <cat> red", max_sequence_length=8)
    assert np.abs(condition(pipe, "a (<cat>:1.5) red", max_sequence_length=8) - plain).max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"load_components": "on_demand"}])
def test_the_prompt_cache_sees_another_embedding(pipe, tmp_path, options):
    pipe.save_pretrained(tmp_path / "pipe")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipe", **options)
    cache = PromptCache(tmp_path / "cache")
    pipe.enable_prompt_cache(cache)
    made = []
    for change in (None, both(2), both(2), both(2, seed=1)):
        if change is not None:
            pipe.load_textual_inversion(change, token="<cat>")
        made.append(condition(pipe))
        if change is not None:
            pipe.unload_textual_inversion("<cat>")
    assert (cache.hits, cache.misses) == (1, 3)
    assert np.array_equal(made[1], made[2])
    assert not np.array_equal(made[0], made[1]) and not np.array_equal(made[2], made[3])


def test_a_changed_vector_in_the_middle_is_seen(pipe):
    cache = PromptCache()
    pipe.enable_prompt_cache(cache)
    embedding = both(5)
    for _ in range(2):
        pipe.load_textual_inversion(embedding, token="<cat>")
        condition(pipe)
        pipe.unload_textual_inversion()
        embedding["clip_l"] = embedding["clip_l"].copy()
        embedding["clip_l"][2, 7] += 1
    assert cache.misses == 2


def test_saving_and_sharing(pipe, tmp_path):
    pipe.load_textual_inversion(both(3), token="<cat>")
    pipe.load_textual_inversion(vectors(12, 1, seed=3), token="<dog>")
    expected = condition(pipe, "<dog> <cat>")
    other = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    np.testing.assert_array_equal(condition(other, "<dog> <cat>"), expected)
    pipe.save_pretrained(tmp_path / "pipe")
    again = DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    np.testing.assert_allclose(condition(again, "<dog> <cat>"), expected, atol=1e-6)
    again.unload_textual_inversion()
    np.testing.assert_allclose(condition(again, "a red"), condition(tiny.make_pipeline(), "a red"), atol=1e-6)

    pipe.save_textual_inversion(tmp_path / "cat", "<cat>")
    pipe.save_textual_inversion(tmp_path / "dog", "<dog>", weight_name="dog.safetensors")
    assert SafetensorsFile(tmp_path / "dog" / "dog.safetensors").keys() == ["<dog>"]
    fresh = tiny.make_pipeline()
    fresh.load_textual_inversion([tmp_path / "cat", tmp_path / "dog"])
    np.testing.assert_allclose(condition(fresh, "<dog> <cat>"), expected, atol=1e-6)
    with pytest.raises(InputError, match="no textual inversion '<cat>_1'"):
        pipe.save_textual_inversion(tmp_path, "<cat>_1")
    with pytest.raises(InputError, match="is a file"):
        pipe.save_textual_inversion(tmp_path / "dog" / "dog.safetensors", "<dog>")


def test_on_demand_and_in_16_bits(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    for options in ({"load_components": "on_demand"}, {"storage_dtype": "bfloat16"}):
        here = DiffusionPipeline.from_pretrained(tmp_path, **options)
        before = condition(here)
        here.load_textual_inversion(both(1), token="<dog>")
        here.load_textual_inversion(both(2), token="<cat>")
        loaded = condition(here)
        if "load_components" in options:
            pipe.load_textual_inversion([both(1), both(2)], token=["<dog>", "<cat>"])
            np.testing.assert_allclose(loaded, condition(pipe), atol=1e-6)
            here.save_pretrained(tmp_path / "again")
            np.testing.assert_allclose(
                condition(DiffusionPipeline.from_pretrained(tmp_path / "again")), loaded, atol=1e-6
            )
        assert np.abs(loaded - before).max() > 1e-2
        here.unload_textual_inversion()
        np.testing.assert_array_equal(condition(here), before)


def test_a_tower_in_float16_takes_rounded_rows(pipe):
    pipe.text_encoder.to(dtype="float16")
    pipe.load_textual_inversion(both(2), token="<cat>")
    weight = pipe.text_encoder.get_input_embeddings().weight
    assert weight.dtype == paddle.float16
    np.testing.assert_array_equal(weight.numpy()[VOCABULARY:], both(2)["clip_l"].astype("float16"))


def test_the_picture_changes(pipe):
    def draw():
        return pipe("<cat>", num_inference_steps=1, generator=TorchGenerator(0), output_type="np").images

    before = draw()
    pipe.load_textual_inversion(both(2), token="<cat>")
    assert np.abs(draw() - before).max() > 1 / 255


def refused(pipe, error, match, *args, **options):
    def state():
        return [getattr(pipe.components[name], "added_tokens", None) for name in ("tokenizer", "tokenizer_2")]

    before = state()
    with pytest.raises(error, match=match):
        pipe.load_textual_inversion(*args, **options)
    assert state() == before


def test_refusals_of_files(pipe, tmp_path):
    def file(name, tensors):
        return write(tmp_path / name, tensors)

    (tmp_path / "cat.pt").write_bytes(b"\x80\x02")
    refused(pipe, CheckpointFormatError, "cat.pt is a pickle.*emb_params", tmp_path / "cat.pt")
    refused(pipe, CheckpointFormatError, "b.bin is a pickle", tmp_path, weight_name="b.bin")
    refused(pipe, CheckpointNotFoundError, "no file", tmp_path / "none.safetensors")
    refused(pipe, CheckpointFormatError, "3 tensors .a, b, c", file("c.safetensors", dict.fromkeys("abc", vectors(16))))
    refused(pipe, CheckpointFormatError, "t5", {**both(), "t5": vectors(40)}, token="<cat>")
    refused(pipe, CheckpointFormatError, "0 tensors .none", {})
    path = file("wide.safetensors", {"<w>": vectors(20)})
    refused(
        pipe, WeightMismatchError, "wide.safetensors: .* '<w>' are 20 wide.* text_encoder 16, text_encoder_2 12", path
    )
    refused(
        pipe, WeightMismatchError, "'<w>' are 20 wide, and the text_encoder takes 16", path, text_encoder="text_encoder"
    )
    swapped = {"clip_l": vectors(12), "clip_g": vectors(16)}
    refused(pipe, WeightMismatchError, "are 12 wide, and the text_encoder takes 16", swapped, token="<cat>")
    refused(
        pipe,
        CheckpointFormatError,
        r"shape \[2, 3, 16\]",
        {"a": np.zeros((2, 3, 16), "float32")},
        text_encoder="text_encoder",
    )
    refused(pipe, CheckpointFormatError, "no finite numbers", {"<n>": np.full((1, 16), np.nan, "float32")})
    refused(pipe, InputError, "has no argument 'weight'. Did you mean 'weight_name'", path, weight="x.safetensors")


def test_refusals_of_words(pipe):
    refused(pipe, InputError, "does not say which word", both())
    refused(pipe, InputError, "token is '<a>' for 2", [both(), both()], token="<a>")
    refused(pipe, InputError, "2 embeddings and 3 tokens", [both(), both()], token=["<a>", "<b>", "<c>"])
    refused(pipe, InputError, "has the token 're' already", both(), token="re")
    refused(pipe, InputError, "token is ' '", both(), token=" ")
    refused(pipe, InputError, r"`token\[1\]` is 5", both(), token=["<a>", 5])
    refused(pipe, InputError, "has the token '<A>' already", [both(), both()], token=["<a>", "<A>"])
    pipe.load_textual_inversion(both(2), token="<cat>")
    for token in ("<cat>", "<CAT>", "<cat>_1", "<cat>_2"):
        refused(pipe, InputError, "the tokenizer has the token", both(), token=token)
    pipe.load_textual_inversion(both(1), token="<dog>_2")
    refused(pipe, InputError, "the token '<dog>_2' already, so '<dog>'", both(2), token="<dog>")


def test_refusals_of_towers(pipe):
    one = {"<cat>": vectors(16)}
    refused(
        pipe,
        InputError,
        "text_encoder is 'text_encoder_3'; .*text_encoder and text_encoder_2",
        one,
        text_encoder="text_encoder_3",
    )
    refused(pipe, InputError, "that the pipeline has not", one, text_encoder=tiny.make_components()["text_encoder"])
    refused(pipe, InputError, "The tokenizer of the text_encoder is", one, None, pipe.tokenizer_2, pipe.text_encoder)
    refused(
        pipe,
        InputError,
        "clip_g, embeddings for the text_encoder_2, which is not asked for",
        {"clip_g": vectors(12)},
        "<c>",
        None,
        "text_encoder",
    )
    pipe.tokenizer_2 = object()
    refused(pipe, InputError, "tokenizer_2 is a object", one)
    pipe.tokenizer_2 = pipe.text_encoder_2 = None
    refused(pipe, InputError, "which the pipeline has not. Pass text_encoder='text_encoder'", both(), token="<c>")
    pipe.load_textual_inversion(both(), token="<c>", text_encoder="text_encoder")
    pipe.tokenizer = pipe.text_encoder = None
    refused(pipe, InputError, "no CLIP tower", one)
