"""Pictures drawn with ControlNets are those that diffusers draws."""

import inspect

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from helpers import reference, tiny

import ppsd3

pytestmark = pytest.mark.parity

PROMPT = "a red circle to the left of a blue square!"
JOINT = {**tiny.TRANSFORMER, "num_layers": 2}
CONTROLNETS = {
    "joint": JOINT,
    "pooled": {**JOINT, "force_zeros_for_pooled_projection": False},
    "sd35_medium": {**JOINT, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
    "without text": {
        **JOINT,
        "joint_attention_dim": None,
        "use_pos_embed": False,
        "force_zeros_for_pooled_projection": False,
    },
    "mask": {**JOINT, "extra_conditioning_channels": 1},
}


def picture(seed=0, size=(64, 64)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype="uint8")).resize(size, Image.Resampling.BICUBIC)


def mask():
    array = np.zeros((64, 64), "uint8")
    array[16:48, 8:40] = 255
    return Image.fromarray(array)


@pytest.fixture(autouse=True)
def mean_of_the_posterior(monkeypatch):
    """diffusers encodes control pictures with torch's global generator; here both take the mean."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("control")
    reference.write_checkpoint(root / "base")
    for seed, (name, config) in enumerate(CONTROLNETS.items()):
        net = reference.randomize(diffusers.SD3ControlNetModel(**config), 20 + seed, 0.5)
        net.save_pretrained(root / name)
    return root


def load_both(root, names, task=""):
    def nets(library):
        found = [library.SD3ControlNetModel.from_pretrained(root / name) for name in names]
        return {"controlnet": found if len(found) > 1 else found[0]}

    return reference.load_both(root / "base", f"ControlNet{task}", nets(ppsd3), nets(diffusers))


def draw(pipe, generator, **settings):
    settings = {"prompt": PROMPT, "num_inference_steps": 5, "height": 64, "width": 64, **settings}
    return np.stack([np.asarray(image) for image in pipe(**settings, generator=generator).images]).astype(int)


def assert_same(pipes, **settings):
    ours, theirs = pipes
    mine = draw(ours, ppsd3.TorchGenerator(3), **settings)
    other = draw(theirs, reference.generator(3), **settings)
    assert mine.shape == other.shape and other.std() > 20
    assert np.abs(mine - other).max() <= 1
    return mine


SETTINGS = {
    "defaults": {},
    "weaker": {"controlnet_conditioning_scale": 0.4},
    "in the middle": {"control_guidance_start": 0.2, "control_guidance_end": 0.7},
    "no guidance": {"guidance_scale": 1.0},
    "two pictures each": {"num_images_per_prompt": 2, "prompt": [PROMPT, "a star"]},
    "a picture for each prompt": {"prompt": [PROMPT, "a star"], "control_image": [picture(), picture(1)]},
    "wide": {"width": 96, "control_image": picture(size=(48, 64))},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("net", ["joint", "without text"])
def test_text_to_image(checkpoints, net, name):
    assert_same(load_both(checkpoints, [net]), **{"control_image": picture(), **SETTINGS[name]})


@pytest.mark.parametrize("net", ["pooled", "sd35_medium"])
def test_other_controlnets(checkpoints, net):
    assert_same(load_both(checkpoints, [net]), control_image=picture())


def test_control_shows(checkpoints):
    pipes = load_both(checkpoints, ["joint"])
    first, second = (assert_same(pipes, control_image=picture(seed)) for seed in (0, 1))
    assert np.abs(first - second).max() > 20


@pytest.mark.parametrize(
    "settings",
    [
        {"controlnet_conditioning_scale": [1.0, 0.5]},
        {
            "controlnet_conditioning_scale": [0.3, 1.0],
            "control_guidance_start": [0.0, 0.4],
            "control_guidance_end": [0.5, 1.0],
        },
    ],
)
def test_several(checkpoints, settings):
    pipes = load_both(checkpoints, ["joint", "sd35_medium"])
    assert_same(pipes, control_image=[picture(), picture(1)], **settings)


@pytest.mark.parametrize("settings", [{}, {"num_images_per_prompt": 2}, {"control_guidance_end": 0.6}])
def test_inpainting(checkpoints, settings):
    pipes = load_both(checkpoints, ["mask"], "Inpainting")
    assert_same(pipes, control_image=picture(), control_mask=mask(), **settings)


@pytest.mark.parametrize("task", ["", "Inpainting"])
def test_signatures_are_diffusers(task):
    for method in ("__call__", "__init__"):
        ours, theirs = (
            inspect.signature(getattr(getattr(library, f"StableDiffusion3ControlNet{task}Pipeline"), method)).parameters
            for library in (ppsd3, diffusers)
        )
        assert [name for name in ours if name not in ("mu", "guidance", "timesteps")] == list(theirs)
        assert all(ours[name].default == theirs[name].default for name in theirs)


@pytest.mark.parametrize("net", ["joint", "without text"])
def test_what_we_save_diffusers_loads(checkpoints, net, tmp_path):
    ours, _ = load_both(checkpoints, [net])
    ours.save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusion3ControlNetPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    again = ppsd3.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again) is ppsd3.StableDiffusion3ControlNetPipeline
    assert_same((again, theirs), control_image=picture())
