"""Token ids against transformers, both ways: its files here, our files there."""

import json
import shutil

import numpy as np
import pytest

from ppsd3.transformers import CLIPTokenizer, T5Tokenizer

pytestmark = pytest.mark.parity

# With a version: without the library, this directory itself would be found as a namespace package of that name.
transformers = pytest.importorskip("transformers", minversion="4.40")


def assert_same_ids(ours, theirs, texts, max_length):
    """Padded to max_length, and neither padded nor truncated."""
    theirs.model_max_length = max_length
    got = ours(texts, padding="max_length", max_length=max_length)
    want = theirs(texts, padding="max_length", max_length=max_length, truncation=True)
    different = [text for text, a, b in zip(texts, got.input_ids.tolist(), want.input_ids) if a != b]
    assert not different, f"{len(different)} of {len(texts)} differ, first {different[0]!r}"
    np.testing.assert_array_equal(got.attention_mask, want.attention_mask)
    assert ours(texts, padding=False, truncation=False).input_ids == theirs(texts, truncation=False).input_ids


def test_clip_from_vocab_and_merges(clip_bpe, varied_prompts):
    ours, theirs = CLIPTokenizer.from_pretrained(clip_bpe), transformers.CLIPTokenizer.from_pretrained(clip_bpe)
    assert_same_ids(ours, theirs, varied_prompts, 77)
    assert ours.pad_token_id == theirs.pad_token_id == 49407


def test_clip_that_pads_with_zero(clip_bpe_padded_with_zero, varied_prompts):
    ours = CLIPTokenizer.from_pretrained(clip_bpe_padded_with_zero)
    theirs = transformers.CLIPTokenizer.from_pretrained(clip_bpe_padded_with_zero)
    assert_same_ids(ours, theirs, varied_prompts, 77)
    assert ours.pad_token_id == theirs.pad_token_id == 0


def test_clip_with_a_special_tokens_map(clip_bpe, varied_prompts, tmp_path):
    """Files from before added_tokens_decoder existed."""
    shutil.copytree(clip_bpe, tmp_path, dirs_exist_ok=True)
    start = {"content": "<|startoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": start, "pad_token": "!"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "pad_token": "<|endoftext|>"}))
    ours, theirs = CLIPTokenizer.from_pretrained(tmp_path), transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert_same_ids(ours, theirs, varied_prompts, 77)
    assert ours.pad_token_id == theirs.pad_token_id == 0


@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "!"])
def test_clip_from_the_tokenizer_json_of_transformers(clip_bpe, varied_prompts, tmp_path, pad_token):
    theirs = transformers.CLIPTokenizer.from_pretrained(clip_bpe, pad_token=pad_token, model_max_length=77)
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "merges.txt").exists()
    assert_same_ids(CLIPTokenizer.from_pretrained(tmp_path), theirs, varied_prompts, 77)


@pytest.mark.parametrize("keep", ["tokenizer.json", "vocab.json merges.txt", "everything"])
def test_transformers_reads_what_we_save(clip_bpe_padded_with_zero, varied_prompts, tmp_path, keep):
    ours = CLIPTokenizer.from_pretrained(clip_bpe_padded_with_zero)
    ours.save_pretrained(tmp_path)
    for file in tmp_path.iterdir():
        if keep != "everything" and file.name not in (*keep.split(), "tokenizer_config.json"):
            file.unlink()
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == ours.model_max_length == 77
    assert_same_ids(ours, theirs, varied_prompts, 77)
    assert_same_ids(CLIPTokenizer.from_pretrained(tmp_path), theirs, varied_prompts, 77)


def test_t5_from_spiece(spiece, varied_prompts):
    ours, theirs = T5Tokenizer.from_pretrained(spiece), transformers.T5Tokenizer.from_pretrained(spiece)
    assert_same_ids(ours, theirs, varied_prompts, 256)
    assert ours.vocab_size == len(theirs)
    ends = ["<extra_id_0>", "<extra_id_99>", "</s>", "<pad>", "<unk>"]
    assert [ours._id(token) for token in ends] == theirs.convert_tokens_to_ids(ends)


def test_t5_from_the_tokenizer_json_of_transformers(spiece, varied_prompts, tmp_path):
    theirs = transformers.T5TokenizerFast.from_pretrained(spiece)
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "spiece.model").exists()
    assert_same_ids(T5Tokenizer.from_pretrained(tmp_path), theirs, varied_prompts, 256)


def test_t5_with_the_settings_published_for_v1_1(spiece, varied_prompts, tmp_path):
    """Sentinels that swallow the spaces around them."""
    shutil.copytree(spiece, tmp_path, dirs_exist_ok=True)
    size = T5Tokenizer.from_pretrained(spiece).vocab_size
    added = {
        str(size - 1 - i): {"content": f"<extra_id_{i}>", "lstrip": True, "rstrip": True, "normalized": False}
        for i in range(100)
    }
    named = enumerate(["<pad>", "</s>", "<unk>"])
    added.update({str(i): {"content": token, "normalized": False} for i, token in named})
    config = {
        "added_tokens_decoder": {id: {**token, "single_word": False, "special": True} for id, token in added.items()},
        "additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)],
        "extra_ids": 100,
        "model_max_length": 512,
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = T5Tokenizer.from_pretrained(tmp_path), transformers.T5Tokenizer.from_pretrained(tmp_path)
    assert_same_ids(ours, theirs, varied_prompts, 256)


@pytest.mark.parametrize("keep", ["tokenizer.json", "spiece.model", "everything"])
@pytest.mark.parametrize("extra_ids", [100, 0])
def test_transformers_reads_what_we_save_of_t5(spiece, varied_prompts, tmp_path, keep, extra_ids):
    source = tmp_path / "source"
    shutil.copytree(spiece, source)
    (source / "tokenizer_config.json").write_text(json.dumps({"extra_ids": extra_ids, "model_max_length": 77}))
    ours = T5Tokenizer.from_pretrained(source)
    saved = tmp_path / "saved"
    ours.save_pretrained(saved)
    for file in saved.iterdir():
        if keep != "everything" and file.name not in (keep, "tokenizer_config.json"):
            file.unlink()
    theirs = transformers.T5Tokenizer.from_pretrained(saved)
    assert theirs.model_max_length == 77
    assert_same_ids(ours, theirs, varied_prompts, 77)
    assert_same_ids(T5Tokenizer.from_pretrained(saved), theirs, varied_prompts, 77)


def test_t5_tokenizer_json_without_sentinels(varied_prompts, tmp_path):
    """What the trainer of the tokenizers library writes: no sentinels in the vocabulary, no settings beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    backend.train_from_iterator([text for text in varied_prompts if text.isascii()], trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours, theirs = T5Tokenizer.from_pretrained(tmp_path), transformers.T5Tokenizer.from_pretrained(tmp_path)
    assert_same_ids(ours, theirs, varied_prompts, 77)


def test_clip_tokenizer_json_of_the_trainer(varied_prompts, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=special, end_of_word_suffix="</w>", initial_alphabet=alphabet
    )
    backend.train_from_iterator([text.lower() for text in varied_prompts[:300]], trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours, theirs = CLIPTokenizer.from_pretrained(tmp_path), transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert_same_ids(ours, theirs, varied_prompts, 77)


def test_decoding(clip_bpe, spiece):
    texts = ["A photo, of a cat!", "it's 3.14 ünïcode", "two  spaces"]
    for ours, theirs in (
        (CLIPTokenizer.from_pretrained(clip_bpe), transformers.CLIPTokenizer.from_pretrained(clip_bpe)),
        (T5Tokenizer.from_pretrained(spiece), transformers.T5Tokenizer.from_pretrained(spiece)),
    ):
        for row in ours(texts, max_length=40).input_ids:
            for skip in (True, False):
                want = theirs.decode(row, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                assert ours.decode(row, skip_special_tokens=skip) == want
