"""The same checkpoint, prompt, seed and settings give the picture that diffusers gives, and back."""

import functools
import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from helpers import reference, tiny

import ppsd3
from ppsd3.utils.hub import BUNDLED

pytestmark = pytest.mark.parity

NO_T5 = ("text_encoder_3", "tokenizer_3")
PROMPT = "a red circle to the left of a blue square!"
LONG = "the red square of the circle is above a blue one, and " * 20

# What is passed to both; "seed" becomes a generator on each side, "absent" names components to do without.
SETTINGS = {
    "defaults": {},
    "no guidance": {"guidance_scale": 1.0},
    "strong guidance": {"guidance_scale": 9.0},
    "negative prompt": {"negative_prompt": "a blue square"},
    "three prompts": {"prompt_2": "two green triangles", "prompt_3": "there is a star"},
    "three negative prompts": {
        "negative_prompt": "square",
        "negative_prompt_2": "a white background",
        "negative_prompt_3": "hearts",
    },
    "batch": {"prompt": [PROMPT, "a yellow star", ""]},
    "batch with negatives": {"prompt": [PROMPT, "a yellow star"], "negative_prompt": ["blue", "red"]},
    "two pictures each": {"prompt": [PROMPT, "a yellow star"], "num_images_per_prompt": 2},
    "a generator each": {"num_images_per_prompt": 2, "seed": [5, 6]},
    "without T5": {"absent": NO_T5},
    "without T5, 77 tokens": {
        "absent": NO_T5,
        "max_sequence_length": 77,
        "num_images_per_prompt": 2,
    },
    "77 tokens": {"max_sequence_length": 77},
    "512 tokens of a long prompt": {"prompt": LONG, "max_sequence_length": 512},
    "wide": {"height": 32, "width": 96},
    "tall": {"height": 96, "width": 40},
    "skip-layer guidance": {
        "skip_guidance_layers": [1],
        "skip_layer_guidance_start": 0.05,
        "skip_layer_guidance_stop": 0.7,
        "num_inference_steps": 8,
    },
    "skip-layer guidance of several pictures": {
        "prompt": [PROMPT, "a yellow star"],
        "skip_guidance_layers": [0, 2],
        "skip_layer_guidance_scale": 1.5,
        "skip_layer_guidance_stop": 0.9,
        "num_images_per_prompt": 2,
    },
    "one step": {"num_inference_steps": 1},
    "28 steps": {"num_inference_steps": 28},
    "50 steps": {"num_inference_steps": 50},
    "own sigmas": {"sigmas": [1.0, 0.7, 0.4, 0.1]},
    "clip_skip": {"clip_skip": 1},
    "unicode and emoji": {"prompt": "naïve café 日本 🎨  a   red\tcircle"},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Saved by diffusers: an SD3, an SD3.5 (with the files of the published tokenizers), and a dynamic shift."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {name: root / name for name in ("sd3", "sd35", "dynamic")}
    reference.write_checkpoint(made["sd3"])
    reference.write_checkpoint(made["sd35"], seed=10, **tiny.SD35)
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        shutil.rmtree(made["sd35"] / name)
    reference.write_published_tokenizers(made["sd35"])
    reference.write_checkpoint(made["dynamic"], seed=20, scheduler={"use_dynamic_shifting": True})
    return made


@functools.cache
def load_reference(directory, absent=()):
    return reference.load(directory, **dict.fromkeys(absent))


@functools.cache
def load_ours(directory, absent=()):
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(directory, **dict.fromkeys(absent))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, make_generator, settings):
    settings = {"prompt": PROMPT, "num_inference_steps": 4, "seed": 3, **settings}
    seed = settings.pop("seed")
    generator = [make_generator(s) for s in seed] if isinstance(seed, list) else make_generator(seed)
    return as_levels(pipe(**settings, generator=generator).images)


def draw_reference(directory, settings):
    settings = dict(settings)
    return draw(load_reference(directory, settings.pop("absent", ())), reference.generator, settings)


def draw_ours(directory, settings):
    settings = dict(settings)
    return draw(load_ours(directory, settings.pop("absent", ())), ppsd3.TorchGenerator, settings)


def as_levels(images):
    return np.stack([np.asarray(image) for image in images]).astype(int)


def assert_same_pictures(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.std() > 20, "the reference draws one flat colour, which proves nothing"
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("name", SETTINGS)
def test_same_picture_sd3(checkpoints, name):
    settings = SETTINGS[name]
    assert_same_pictures(draw_ours(checkpoints["sd3"], settings), draw_reference(checkpoints["sd3"], settings))


@pytest.mark.parametrize(
    "name", ["defaults", "no guidance", "batch with negatives", "wide", "skip-layer guidance", "without T5", "28 steps"]
)
def test_same_picture_sd35_with_published_tokenizers(checkpoints, name):
    settings = SETTINGS[name]
    assert_same_pictures(draw_ours(checkpoints["sd35"], settings), draw_reference(checkpoints["sd35"], settings))


@pytest.mark.parametrize("settings", [{}, {"mu": 0.8}, {"height": 96, "width": 96}], ids=str)
def test_same_picture_with_dynamic_shift(checkpoints, settings):
    ours, theirs = (function(checkpoints["dynamic"], settings) for function in (draw_ours, draw_reference))
    assert_same_pictures(ours, theirs)


def test_settings_matter(checkpoints):
    """The pictures of the settings differ from one another, so equality above is not equality of anything."""
    names = [name for name in SETTINGS if name not in ("wide", "tall")]
    # The last of a batch: the first has the prompt and the noise of the single picture.
    pictures = {name: draw_ours(checkpoints["sd3"], SETTINGS[name])[-1] for name in names}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert np.abs(pictures[first] - pictures[second]).max() > 10, (first, second)
    other_seed = draw_ours(checkpoints["sd3"], {"seed": 4})[0]
    assert np.abs(other_seed - pictures["defaults"]).mean() > 5


@pytest.mark.parametrize("name", ["sd3", "sd35", "dynamic"])
def test_what_we_save_diffusers_draws(checkpoints, name, tmp_path):
    pipe = ppsd3.DiffusionPipeline.from_pretrained(checkpoints[name])
    pipe.save_pretrained(tmp_path / "saved")
    for settings in ({}, {"negative_prompt": "square", "num_images_per_prompt": 2}):
        theirs = draw_reference(tmp_path / "saved", settings)
        assert_same_pictures(draw_ours(tmp_path / "saved", settings), theirs)
        assert np.array_equal(theirs, draw_reference(checkpoints[name], settings))


def test_pipeline_without_t5_goes_to_diffusers(checkpoints, tmp_path):
    pipe = ppsd3.DiffusionPipeline.from_pretrained(checkpoints["sd3"], text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["text_encoder_3"] == [None, None]
    # diffusers wants to be told again what its own pipelines without T5 lack as well.
    assert_same_pictures(draw_ours(tmp_path, {}), draw_reference(tmp_path, {"absent": NO_T5}))


def test_our_own_pipeline_goes_to_diffusers(tmp_path):
    tiny.make_pipeline(seed=3).save_pretrained(tmp_path)
    assert_same_pictures(draw_ours(tmp_path, {}), draw_reference(tmp_path, {}))


def test_encode_prompt(checkpoints):
    arguments = {
        "prompt": [PROMPT, LONG],
        "prompt_2": None,
        "prompt_3": ["a star", ""],
        "negative_prompt": ["blue", ""],
        "negative_prompt_2": ["x", "y"],
        "num_images_per_prompt": 2,
    }
    theirs = load_reference(checkpoints["sd3"]).encode_prompt(**arguments)
    ours = load_ours(checkpoints["sd3"]).encode_prompt(**arguments)
    for mine, other in zip(ours, theirs):
        other = other.detach().numpy()
        assert mine.shape == list(other.shape)
        assert np.abs(mine.numpy() - other).max() <= 1e-5 * np.abs(other).max()


@pytest.mark.parametrize("output_type", ["np", "pt", "latent"])
def test_other_output_types(checkpoints, output_type):
    settings = {"prompt": PROMPT, "num_inference_steps": 3, "output_type": output_type}
    theirs = load_reference(checkpoints["sd3"])(**settings, generator=reference.generator(3)).images
    ours = load_ours(checkpoints["sd3"])(**settings, generator=ppsd3.TorchGenerator(3)).images
    ours, theirs = (np.asarray(a if output_type == "np" else a.numpy()) for a in (ours, theirs))
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()


@pytest.mark.parametrize(
    "name",
    ["defaults", "no guidance", "negative prompt", "batch", "without T5", "wide", "skip-layer guidance", "28 steps"],
)
def test_same_picture_shapes(name):
    settings = {"guidance_scale": 7.0, **SETTINGS[name]}  # ours takes the checkpoint's, theirs 7
    assert_same_pictures(draw_ours("shapes", settings), draw_reference(BUNDLED["shapes"], settings))
