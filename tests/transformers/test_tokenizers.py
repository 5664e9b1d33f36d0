"""The tokenizers without transformers: known ids, padding, truncation, files, errors."""

import json
import shutil

import numpy as np
import paddle
import pytest

from ppsd3.transformers import CLIPTokenizer, T5Tokenizer
from ppsd3.transformers.t5.sentencepiece_model import read_sentencepiece_model, write_sentencepiece_model
from ppsd3.utils.errors import CheckpointFormatError, CheckpointNotFoundError, ConfigError, InputError


@pytest.fixture(scope="module")
def clip(clip_bpe):
    return CLIPTokenizer.from_pretrained(clip_bpe)


@pytest.fixture(scope="module")
def t5(spiece):
    return T5Tokenizer.from_pretrained(spiece)


def test_known_clip_ids(clip, clip_bpe_padded_with_zero):
    out = clip(["a photo of a cat", ""])
    assert out.input_ids.shape == (2, 77) and out.input_ids.dtype == np.int64
    assert out.input_ids[0].tolist() == [49406, 320, 1125, 539, 320, 2368] + [49407] * 71
    assert out.input_ids[1].tolist() == [49406] + [49407] * 76
    assert out.attention_mask.sum(-1).tolist() == [7, 2]
    assert out.truncated == [None, None]
    assert (clip.bos_token_id, clip.eos_token_id, clip.pad_token_id, clip.unk_token_id) == (49406, *[49407] * 3)
    assert clip.vocab_size == len(clip) == 49408
    padded = CLIPTokenizer.from_pretrained(clip_bpe_padded_with_zero)("a photo of a cat").input_ids
    assert padded[0].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407] + [0] * 70


def test_t5_layout(t5):
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id, t5.bos_token_id) == (0, 1, 2, None)
    assert t5.convert_ids_to_tokens([0, 1, 2, t5.vocab_size - 1, t5.vocab_size]) == [
        *("<pad>", "</s>", "<unk>", "<extra_id_0>", None)
    ]
    row = t5("tokens of a text", max_length=40).input_ids[0]
    assert row[row != 0][-1] == 1 and t5.decode(row) == "tokens of a text"
    assert t5.model_max_length == 512


def test_padding(clip):
    texts = ["a cat", "a photo of a cat"]
    longest = clip(texts, padding="longest")
    assert longest.input_ids.shape == (2, 7) and longest.attention_mask.tolist() == [[1] * 4 + [0] * 3, [1] * 7]
    assert clip(texts, padding=False).input_ids == [[49406, 320, 2368, 49407], longest.input_ids[1].tolist()]
    assert clip(texts, max_length=10).input_ids.shape == (2, 10)
    assert clip("one text").input_ids.shape == (1, 77)
    assert clip([]).input_ids.shape == (0, 77)


def test_truncation_keeps_the_end_and_reports_the_rest_in_the_users_words(clip, t5):
    text = "A  Red CIRCLE, then a Blue Square"
    out = clip([text, "a cat"], max_length=6)
    assert out.input_ids.shape == (2, 6) and out.input_ids[0, 0] == 49406 and out.input_ids[0, -1] == 49407
    assert out.truncated[0].strip() == "then a Blue Square" and out.truncated[1] is None
    assert clip(text, padding=False, truncation=False).truncated == [None]
    out = t5([text], max_length=4)
    assert out.input_ids[0, -1] == 1 and text.endswith(out.truncated[0]) and len(out.truncated[0]) < len(text)
    out = clip(["猫" * 100])
    assert out.input_ids.shape == (1, 77) and set(out.truncated[0]) == {"猫"}


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"text": None}, "str"),
        ({"text": ["a", 3]}, r"`text\[1\]` is 3"),
        ({"text": "a", "padding": "left"}, "'max_length', 'longest' or False"),
        ({"text": "a", "max_length": 2}, "no room"),
        ({"text": "word " * 99, "truncation": False}, "truncation=True"),
    ],
)
def test_bad_arguments(clip, arguments, words):
    with pytest.raises(InputError, match=words):
        clip(**arguments)


def test_decode(clip):
    row = clip("A photo of a CAT!").input_ids[0]
    assert clip.decode(row) == "a photo of a cat !"
    assert clip.decode(row, skip_special_tokens=False).startswith("<|startoftext|>a photo")


@pytest.mark.parametrize("keep", ["tokenizer.json", "vocab.json merges.txt", "everything"])
def test_what_is_saved_is_what_was_loaded(clip_bpe_padded_with_zero, varied_prompts, tmp_path, keep):
    first = CLIPTokenizer.from_pretrained(clip_bpe_padded_with_zero.parent, subfolder=clip_bpe_padded_with_zero.name)
    first.save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        given, saved = (clip_bpe_padded_with_zero / name).read_text("utf-8"), (tmp_path / name).read_text("utf-8")
        assert json.loads(given) == json.loads(saved) if name.endswith("json") else given == saved
    for file in tmp_path.iterdir():
        if keep != "everything" and file.name not in (*keep.split(), "tokenizer_config.json"):
            file.unlink()
    second = CLIPTokenizer.from_pretrained(tmp_path)
    assert (second.pad_token, second.model_max_length) == ("!", 77)
    np.testing.assert_array_equal(first(varied_prompts).input_ids, second(varied_prompts).input_ids)


@pytest.mark.parametrize("keep", ["tokenizer.json", "spiece.model"])
def test_what_is_saved_is_what_was_loaded_t5(t5, spiece, varied_prompts, tmp_path, keep):
    t5.save_pretrained(tmp_path)
    assert (tmp_path / "spiece.model").read_bytes() == (spiece / "spiece.model").read_bytes()
    for file in tmp_path.iterdir():
        if file.name not in (keep, "tokenizer_config.json"):
            file.unlink()
    np.testing.assert_array_equal(
        t5(varied_prompts, max_length=256).input_ids,
        T5Tokenizer.from_pretrained(tmp_path)(varied_prompts, max_length=256).input_ids,
    )


def test_merges_written_as_strings(clip, clip_bpe, varied_prompts, tmp_path):
    """tokenizer.json up to tokenizers 0.19."""
    clip.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    old = tmp_path / "old"
    old.mkdir()
    (old / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    texts = varied_prompts[:100]
    np.testing.assert_array_equal(clip(texts).input_ids, CLIPTokenizer.from_pretrained(old)(texts).input_ids)


def test_the_sentencepiece_reader_agrees_with_the_library(spiece):
    sentencepiece = pytest.importorskip("sentencepiece")
    library = sentencepiece.SentencePieceProcessor(model_file=str(spiece / "spiece.model"))
    model = read_sentencepiece_model((spiece / "spiece.model").read_bytes(), "spiece.model")
    ids = range(library.get_piece_size())
    assert model.pieces == [(library.id_to_piece(i), library.get_score(i)) for i in ids]
    assert model.unk_id == library.unk_id() == 2
    controls = [library.id_to_piece(i) for i in ids if library.is_control(i)]
    assert [token["content"] for token in model.added_tokens] == controls
    assert model.charsmap


class TestMadeSpieceModel:
    """PaddleNLP reads T5's vocabulary from ``spiece.model`` alone; from a ``tokenizer.json``, one is made."""

    @pytest.fixture
    def made(self, t5, tmp_path):
        t5.save_pretrained(tmp_path / "json")
        (tmp_path / "json" / "spiece.model").unlink()
        T5Tokenizer.from_pretrained(tmp_path / "json").save_pretrained(tmp_path / "made")
        return tmp_path / "made" / "spiece.model"

    def test_the_library_reads_the_same_ids(self, made, spiece, varied_prompts):
        sentencepiece = pytest.importorskip("sentencepiece")
        ours, first = (
            sentencepiece.SentencePieceProcessor(model_file=str(path)) for path in (made, spiece / "spiece.model")
        )
        for text in varied_prompts:
            assert ours.encode(text) == first.encode(text), text
        for name in ("pad_id", "eos_id", "unk_id", "bos_id", "get_piece_size"):
            assert getattr(ours, name)() == getattr(first, name)(), name
        for id in range(ours.get_piece_size()):
            assert ours.id_to_piece(id) == first.id_to_piece(id)
            assert (ours.is_control(id), ours.is_unknown(id)) == (first.is_control(id), first.is_unknown(id))

    def test_it_is_read_back(self, made, t5, varied_prompts, tmp_path):
        (tmp_path / "alone").mkdir()
        shutil.copy(made, tmp_path / "alone")
        (tmp_path / "alone" / "tokenizer_config.json").write_text(json.dumps({"extra_ids": t5.extra_ids}))
        again = T5Tokenizer.from_pretrained(tmp_path / "alone")
        assert again(varied_prompts, padding=False).input_ids == t5(varied_prompts, padding=False).input_ids
        assert again.vocab_size == t5.vocab_size

    def test_negative_and_missing_ids(self):
        data = write_sentencepiece_model([("<unk>", 0.0), ("a", -1.5)], 0, (), None)
        model = read_sentencepiece_model(data, "x")
        assert (model.pieces, model.unk_id, model.charsmap) == ([("<unk>", 0.0), ("a", -1.5)], 0, None)
        library = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=data)
        assert (library.pad_id(), library.eos_id(), library.unk_id(), library.encode("a")) == (-1, -1, 0, [0, 1])

    @pytest.mark.parametrize(
        "pieces, unk_id", [([("a", 0.0), ("a", 0.0)], 0), ([("", 0.0)], 0), ([("a", 0.0)], None), ([("a", 0.0)], 1)]
    )
    def test_what_sentencepiece_cannot_hold(self, pieces, unk_id):
        assert write_sentencepiece_model(pieces, unk_id, (), None) is None

    def test_only_missing_vocabularies_are_added(self, t5, clip, clip_bpe, tmp_path):
        (tmp_path / "spiece.model").write_bytes(b"theirs")
        t5.save_vocabulary(tmp_path)
        clip.save_vocabulary(tmp_path)
        assert (tmp_path / "spiece.model").read_bytes() == b"theirs"
        assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads((clip_bpe / "vocab.json").read_text())


def test_missing_files(tmp_path, clip_bpe, spiece):
    with pytest.raises(CheckpointNotFoundError, match=r"nowhere.*tokenizer\.json or vocab\.json with merges\.txt"):
        CLIPTokenizer.from_pretrained(tmp_path, subfolder="nowhere")
    with pytest.raises(CheckpointNotFoundError, match=r"no directory .*nowhere.*Check the path"):
        CLIPTokenizer.from_pretrained(tmp_path / "nowhere")
    shutil.copyfile(clip_bpe / "vocab.json", tmp_path / "vocab.json")
    with pytest.raises(CheckpointNotFoundError, match=r"merges\.txt; found: vocab\.json"):
        CLIPTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"tokenizer\.json or spiece\.model; found: vocab\.json"):
        T5Tokenizer.from_pretrained(tmp_path)


def test_damaged_files(tmp_path, clip, t5, clip_bpe, spiece):
    model = (spiece / "spiece.model").read_bytes()
    for damaged in (model[:-5], b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b""):
        (tmp_path / "spiece.model").write_bytes(damaged)
        with pytest.raises(CheckpointFormatError, match=r"spiece.model"):
            T5Tokenizer.from_pretrained(tmp_path)

    clip.save_pretrained(tmp_path / "clip")
    with pytest.raises(CheckpointFormatError, match="Unigram"):
        T5Tokenizer.from_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer.json"):
        CLIPTokenizer.from_pretrained(tmp_path / "clip")
    t5.save_pretrained(tmp_path / "t5")
    with pytest.raises(CheckpointFormatError, match="BPE"):
        CLIPTokenizer.from_pretrained(tmp_path / "t5")

    shutil.copyfile(clip_bpe / "vocab.json", tmp_path / "vocab.json")
    for merges in ("a b c\n", "never seen\n"):
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}")
        with pytest.raises(CheckpointFormatError, match="merges"):
            CLIPTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("pad_token, fixture", [("<|endoftext|>", "clip_bpe"), ("!", "clip_bpe_padded_with_zero")])
def test_the_built_in_clip_vocabulary_is_the_published_one(pad_token, fixture, request, tmp_path):
    ours = CLIPTokenizer.published(pad_token)
    theirs = CLIPTokenizer.from_pretrained(request.getfixturevalue(fixture))
    texts = ["a photo of a cat", "naïve café 日本 🎨!  !!", "", "x" * 300, "<|endoftext|> it's 3"]
    np.testing.assert_array_equal(ours(texts).input_ids, theirs(texts).input_ids)
    ours.save_pretrained(tmp_path)
    np.testing.assert_array_equal(CLIPTokenizer.from_pretrained(tmp_path)(texts).input_ids, ours(texts).input_ids)


def test_spans_are_places_in_the_text():
    text = "a Photo,  of a CAT"
    spans = CLIPTokenizer.published().spans(text)
    assert [text[start:end] for _, start, end in spans] == ["a", "Photo", ",", "of", "a", "CAT"]


def test_what_training_scripts_call(clip, t5):
    text = "a photo of a cat"
    ids = clip.encode(text)
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert clip.encode(text, add_special_tokens=False) == ids[1:-1]
    assert clip.tokenize(text) == ["a</w>", "photo</w>", "of</w>", "a</w>", "cat</w>"]
    assert clip.convert_tokens_to_ids(clip.tokenize(text)) == ids[1:-1]
    assert clip.convert_tokens_to_ids("no such entry") == clip.unk_token_id
    assert clip.batch_decode(clip([text, "a cat"]).input_ids) == [text, "a cat"]
    bare = t5(text, padding="max_length", max_length=77, add_special_tokens=False).input_ids
    assert 1 not in bare and t5(text, max_length=77).input_ids[0].tolist().count(1) == 1
    assert clip("a " * 99, add_special_tokens=False).input_ids.tolist() == [[320] * 77]  # no room kept for the ends


def test_tensors_of_a_tokenizer(clip):
    out = clip("a cat", return_tensors="pd", return_length=False, return_overflowing_tokens=False)
    assert (
        isinstance(out.input_ids, paddle.Tensor) and out.input_ids.numpy().tolist() == clip("a cat").input_ids.tolist()
    )
    assert out.attention_mask.numpy().sum() == 4
    assert isinstance(clip("a cat", return_tensors="np").input_ids, np.ndarray)
    for options, message in (
        ({"return_tensors": "tf"}, "'pd' or 'pt'"),
        ({"return_tensors": "pd", "padding": False}, "padding='longest'"),
        ({"return_overflowing_tokens": True}, "truncated"),
        ({"stride": 2}, "spans"),
        ({"max_lenght": 2}, "no argument 'max_lenght'"),
    ):
        with pytest.raises(InputError, match=message):
            clip("a cat", **options)
    with pytest.raises(AttributeError, match="convert_tokens_to_ids"):
        clip.get_vocab()
