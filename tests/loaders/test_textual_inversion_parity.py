"""Learnt words give the ids and features that diffusers' loader and transformers' towers give."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers
from diffusers.loaders import TextualInversionLoaderMixin
from helpers import reference

import ppsd3

pytestmark = pytest.mark.parity

PROMPTS = ["a <cat> circle", "<dog>, <cat>", "red", "<cat><cat> <dog>!", "red " * 72 + "<cat> <dog>"]


class Theirs(TextualInversionLoaderMixin):
    """What diffusers' loader needs of a pipeline: one tower and its tokenizer."""

    hf_device_map = None
    components = {}

    def __init__(self, tokenizer, text_encoder):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder

    def encode(self, prompt):
        text = self.maybe_convert_prompt(prompt, self.tokenizer)
        ids = self.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            return ids, self.text_encoder(ids, output_hidden_states=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    reference.write_checkpoint(directory)
    return directory


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(0)
    shapes = {"<cat>": {"clip_l": (3, 16), "clip_g": (2, 12)}, "<dog>": {"clip_l": (1, 16), "clip_g": (1, 12)}}
    return {
        token: {key: rng.standard_normal(shape).astype("float32") for key, shape in some.items()}
        for token, some in shapes.items()
    }


def loaded(checkpoint, embeddings):
    """(our pipeline, diffusers' two towers)"""
    ours = ppsd3.StableDiffusion3Pipeline.from_pretrained(checkpoint)
    ours.load_textual_inversion(list(embeddings.values()), token=list(embeddings))
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(checkpoint, dtype=torch.float32)
    theirs = [Theirs(pipe.tokenizer, pipe.text_encoder), Theirs(pipe.tokenizer_2, pipe.text_encoder_2)]
    for tower, key in zip(theirs, ("clip_l", "clip_g")):
        for token, some in embeddings.items():
            tower.load_textual_inversion({token: torch.from_numpy(some[key])})
    return ours, theirs


def compare(ours, theirs):
    for suffix, tower in zip(("", "_2"), theirs):
        tokenizer, encoder = getattr(ours, "tokenizer" + suffix), getattr(ours, "text_encoder" + suffix)
        for prompt in PROMPTS:
            wanted_ids, wanted = tower.encode(prompt)
            ids = tokenizer(prompt).input_ids
            np.testing.assert_array_equal(ids, wanted_ids.numpy())
            output = encoder(ids, output_hidden_states=True)
            for one, other in zip(output.hidden_states, wanted.hidden_states):
                np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-5)
            np.testing.assert_allclose(output.text_embeds.numpy(), wanted.text_embeds.numpy(), atol=1e-5)


def test_ids_and_features(checkpoint, embeddings):
    ours, theirs = loaded(checkpoint, embeddings)
    compare(ours, theirs)
    ours.unload_textual_inversion("<cat>")
    for tower, count in zip(theirs, (3, 2)):  # diffusers takes each vector for a word
        tower.unload_textual_inversion(["<cat>", *(f"<cat>_{i}" for i in range(1, count))])
    compare(ours, theirs)


def test_what_we_save_diffusers_draws(checkpoint, embeddings, tmp_path):
    ours, _ = loaded(checkpoint, embeddings)
    ours.save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path, dtype=torch.float32)
    settings = {"num_inference_steps": 4, "height": 64, "width": 64, "prompt_3": "a circle"}
    pictures = []
    for pipe, generator, prompt, prompt_2 in (
        (ours, ppsd3.TorchGenerator(3), "a <cat> <dog>", "a <cat> <dog>"),
        # its SD3 pipelines do not call maybe_convert_prompt
        (theirs, torch.Generator("cpu").manual_seed(3), "a <cat> <cat>_1 <cat>_2 <dog>", "a <cat> <cat>_1 <dog>"),
    ):
        pipe.set_progress_bar_config(disable=True)
        image = pipe(prompt, prompt_2, generator=generator, **settings).images[0]
        pictures.append(np.asarray(image).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_a_word_that_we_save_diffusers_loads(checkpoint, embeddings, tmp_path):
    ours, _ = loaded(checkpoint, embeddings)
    ours.unload_textual_inversion(text_encoder="text_encoder_2")
    ours.save_textual_inversion(tmp_path, "<cat>")
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(checkpoint, dtype=torch.float32)
    theirs = Theirs(pipe.tokenizer, pipe.text_encoder)
    theirs.load_textual_inversion(str(tmp_path))
    ids, output = theirs.encode("a <cat> red")
    own = ours.tokenizer("a <cat> red").input_ids
    np.testing.assert_array_equal(own, ids.numpy())
    np.testing.assert_allclose(
        ours.text_encoder(own).last_hidden_state.numpy(), output.last_hidden_state.numpy(), atol=1e-5
    )
