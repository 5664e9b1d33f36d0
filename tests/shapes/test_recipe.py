"""How the bundled model is made: vocabulary, what towers are asked, batches, and the scores' arithmetic."""

import dataclasses

import numpy as np
import paddle
import pytest

from ppsd3.models import AutoencoderKL
from ppsd3.shapes.dataset import LatentScenes, encode_scenes
from ppsd3.shapes.evaluation import Evaluation
from ppsd3.shapes.reading import answers
from ppsd3.shapes.recipe import VAE, pass_through
from ppsd3.shapes.scene import Group, Statement
from ppsd3.shapes.vocabulary import MAX_LENGTH, captions, train_clip_tokenizers, train_t5_tokenizer


@dataclasses.dataclass
class Tokenizers:
    tokenizer: object
    tokenizer_3: object
    clip_max_length: int = MAX_LENGTH


@pytest.fixture(scope="module")
def texts():
    return captions(2000)


@pytest.fixture(scope="module")
def tokenizers(texts):
    return Tokenizers(train_clip_tokenizers(texts)[0], train_t5_tokenizer(texts))


def test_each_word_is_one_token(texts, tokenizers):
    words = [len(text.replace(",", " ,").split()) for text in texts]
    clip = [len(ids) for ids in tokenizers.tokenizer(texts, padding=False).input_ids]
    t5 = [len(ids) for ids in tokenizers.tokenizer_3(texts, padding=False).input_ids]
    assert clip == [n + 2 for n in words] and t5 == [n + 1 for n in words]
    assert max(clip) <= MAX_LENGTH


def test_unknown_words_fall_back_to_characters(tokenizers):
    ids = tokenizers.tokenizer_3(["zebra"], padding=False).input_ids[0]
    assert tokenizers.tokenizer_3.decode(ids) == "zebra"


def test_second_clip_pads_with_id_0(texts):
    first, second = train_clip_tokenizers(texts)
    assert second(["a ring"]).input_ids[0, -1] == 0
    assert first(["a ring"]).input_ids[0, -1] == first.eos_token_id


def test_answers_of_a_statement():
    statement = Statement((Group("ring", "red", "small"), Group("cross", None)), relation="left", background="navy")
    slots, background = answers(statement)
    assert slots[:, 0].sum() == 2 and background > 0
    named = slots[slots[:, 0] > 0]
    assert sorted(named[:, 1]) == [0, 1] and sorted(named[:, 2]) == [0, 1]  # one size said, one subject of the relation


def test_pass_through_keeps_a_flat_pictures_colour():
    """The downsampling convolution starts as an average: a flat input stays flat and near its value."""
    paddle.seed(0)
    vae = AutoencoderKL(**VAE)
    pass_through(vae)
    weight = vae.encoder.down_blocks[0].downsamplers[0].conv.weight.numpy()
    own = np.array([weight[c, c, :2, :2].sum() for c in range(len(weight))])
    assert np.abs(own - 1).max() < 0.3
    assert np.allclose(vae.encoder.conv_out.bias.numpy()[VAE["latent_channels"] :], -6)


def test_batches_are_captioned_cut_and_reproducible(tmp_path, tokenizers):
    paddle.seed(0)
    encode_scenes(AutoencoderKL(**VAE), tmp_path, count=40, shard=32, batch=16)
    assert [np.load(f).shape[0] for f in sorted(tmp_path.glob("*.npy"))] == [32, 8]

    scenes = LatentScenes(tmp_path, tokenizers, batch=8, padded={77: 0.5})
    batches = [scenes(np.random.default_rng(step), step) for step in range(16)]
    again = LatentScenes(tmp_path, tokenizers, batch=8, padded={77: 0.5})(np.random.default_rng(5), 5)
    assert again.prompts == batches[5].prompts and np.array_equal(again.latents, batches[5].latents)
    assert {batch.t5_length == 77 for batch in batches} == {True, False}
    for batch in batches:
        assert batch.latents.shape == (len(batch.prompts), 16, 8, 8)
        longest = max(len(ids) for ids in tokenizers.tokenizer(batch.prompts, padding=False).input_ids)
        assert batch.clip_length == (MAX_LENGTH if batch.t5_length == 77 else longest)


def test_overall_is_the_mean_over_tasks():
    result = Evaluation({"counting": 0.5, "colors": 1.0}, pictures_per_task=4)
    assert result.overall == 0.75 and "overall" in result.table()
