"""Every argument of every pipeline's call acts on the result, or is refused: one entry of a table for each."""

import inspect
import math

import numpy as np
import paddle
import pytest
from helpers import tiny
from helpers.parameters import steady
from PIL import Image

import ppsd3
from ppsd3 import NoGuidance, SD3ControlNetModel, TorchGenerator
from ppsd3.pipelines.component_classes import PIPELINE_CLASSES
from ppsd3.utils.errors import InputError

SIDE = tiny.SIDE
CONTROL = {**tiny.TRANSFORMER, "num_layers": 2, "force_zeros_for_pooled_projection": False}
REMOVED = object()


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype="uint8"))


def mask(low=10, high=40):
    array = np.zeros((SIDE, SIDE), "uint8")
    array[low:high, low:high] = 255
    return Image.fromarray(array)


def noise(channels=4):
    return paddle.to_tensor(np.random.RandomState(0).randn(1, channels, 16, 16).astype("float32"))


def halve(pipe, step, timestep, tensors):
    return {name: tensor * 0.5 for name, tensor in tensors.items()}


class Refused:
    """The settings raise an InputError that names the argument."""

    def __init__(self, match, **settings):
        self.match, self.settings = match, settings


class Beside:
    """The first settings and the second beside them give different results."""

    def __init__(self, first, **second):
        self.first, self.second = first, second


def embeddings(name):
    def entry(pipe):
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        given = dict(zip(names, pipe.encode_prompt("a star", None, None, negative_prompt="blue")))
        return Beside({"prompt": REMOVED, **given}, **{name: given[name] * 0.5})

    return entry


SKIPPING = {"skip_guidance_layers": [1], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 1.0}
FROM_LATENTS = {"image": REMOVED, "latents": noise()}

# Argument -> settings that give another result than none, a Beside, a Refused, or a function of the pipeline that gives
# one of these. With a pipeline's name before it, for that pipeline.
TABLE = {
    "prompt": {"prompt": "a star"},
    "prompt_2": {"prompt_2": "a star"},
    "prompt_3": {"prompt_3": "a star"},
    "height": {"height": 32},
    "width": {"width": 32},
    "num_inference_steps": {"num_inference_steps": 4},
    "sigmas": {"sigmas": [1.0, 0.1]},
    "guidance_scale": {"guidance_scale": 2.0},
    "negative_prompt": {"negative_prompt": "blue"},
    "negative_prompt_2": {"negative_prompt_2": "blue"},
    "negative_prompt_3": {"negative_prompt_3": "blue"},
    "num_images_per_prompt": {"num_images_per_prompt": 2},
    "generator": {"generator": TorchGenerator(4)},
    "latents": {"latents": noise()},
    "StableDiffusion3Img2ImgPipeline latents": FROM_LATENTS,
    "StableDiffusion3ControlNetImg2ImgPipeline latents": FROM_LATENTS,
    "StableDiffusion3PAGImg2ImgPipeline latents": FROM_LATENTS,
    "prompt_embeds": embeddings("prompt_embeds"),
    "negative_prompt_embeds": embeddings("negative_prompt_embeds"),
    "pooled_prompt_embeds": embeddings("pooled_prompt_embeds"),
    "negative_pooled_prompt_embeds": embeddings("negative_pooled_prompt_embeds"),
    "ip_adapter_image": Refused("`ip_adapter_image` needs", ip_adapter_image=picture()),
    "ip_adapter_image_embeds": Refused("`ip_adapter_image_embeds` needs", ip_adapter_image_embeds=[noise()]),
    "output_type": {"output_type": "np"},
    "return_dict": {"return_dict": False},
    "joint_attention_kwargs": Refused("unknown", joint_attention_kwargs={"unknown": 1}),
    "clip_skip": {"clip_skip": 1},
    "callback_on_step_end": {"callback_on_step_end": halve},
    "callback_on_step_end_tensor_inputs": Beside(
        {"callback_on_step_end": halve}, callback_on_step_end_tensor_inputs=["prompt_embeds"]
    ),
    "max_sequence_length": {"max_sequence_length": 77},
    "skip_guidance_layers": SKIPPING,
    "skip_layer_guidance_scale": Beside(SKIPPING, skip_layer_guidance_scale=0.5),
    "skip_layer_guidance_stop": Beside(SKIPPING, skip_layer_guidance_stop=0.3),
    "skip_layer_guidance_start": Beside(SKIPPING, skip_layer_guidance_start=0.3),
    "mu": Refused("mu", mu=0.5),
    "timesteps": {"timesteps": [1000.0, 100.0]},
    "guidance": {"guidance": NoGuidance()},
    "pag_scale": {"pag_scale": 0.0},
    "pag_adaptive_scale": {"pag_adaptive_scale": 0.01},
    "image": {"image": picture(1)},
    "strength": {"strength": 1.0},
    "mask_image": {"mask_image": mask(20, 60)},
    "masked_image_latents": Refused("masked_image_latents", masked_image_latents=noise()),
    "padding_mask_crop": Beside({"output_type": "pil"}, padding_mask_crop=4),
    "control_image": {"control_image": picture(1)},
    "control_mask": {"control_mask": mask(20, 60)},
    "controlnet_conditioning_scale": {"controlnet_conditioning_scale": 0.2},
    "controlnet_pooled_projections": {
        "controlnet_pooled_projections": paddle.full([1, CONTROL["pooled_projection_dim"]], 3.0)
    },
    "control_guidance_start": {"control_guidance_start": 0.5},
    "control_guidance_end": {"control_guidance_end": 0.5},
}


def arguments(name):
    """Arguments of the call of the pipeline called ``name``."""
    return [argument for argument in inspect.signature(getattr(ppsd3, name).__call__).parameters if argument != "self"]


PAIRS = [(name, argument) for name in PIPELINE_CLASSES for argument in arguments(name)]
OWN = {"image": picture(), "mask_image": mask(), "strength": 0.5, "control_image": picture(2), "control_mask": mask()}


@pytest.fixture(scope="module")
def pipes():
    first, made = tiny.make_pipeline(), {}
    for name in PIPELINE_CLASSES:
        class_, parts = getattr(ppsd3, name), {}
        if "ControlNet" in name:
            extra = 1 if "control_mask" in arguments(name) else 0
            parts["controlnet"] = SD3ControlNetModel(**CONTROL, extra_conditioning_channels=extra)
            tiny.randomize(parts["controlnet"], 30, 0.5).eval()
        made[name] = class_.from_pipe(first, **parts)
    return made


@pytest.fixture(scope="module")
def plain():
    """Results of calls without changes, by pipeline."""
    return {}


def result(pipe, changes):
    """(kind, array) that the call gives."""
    settings = {"prompt": "a red circle", "num_inference_steps": 2, "output_type": "latent"}
    own = {name: value for name, value in OWN.items() if name in arguments(type(pipe).__name__)}
    settings = {**settings, "generator": TorchGenerator(3), **own, **changes}
    given = pipe(**{name: value for name, value in settings.items() if value is not REMOVED})
    images = given[0] if isinstance(given, tuple) else given.images
    return type(given), np.asarray(images.numpy() if isinstance(images, paddle.Tensor) else images).astype("float32")


def differ(one, other):
    return one[0] is not other[0] or one[1].shape != other[1].shape or np.abs(one[1] - other[1]).max() > 1e-3


@pytest.mark.parametrize("name, argument", PAIRS)
def test_it_acts_or_is_refused(pipes, plain, name, argument):
    entry = TABLE.get(f"{name} {argument}", TABLE.get(argument))
    assert entry is not None, f"say in the table what {argument!r} of {name} does"
    pipe = pipes[name]
    entry = entry(pipe) if inspect.isfunction(entry) else entry
    if isinstance(entry, Refused):
        assert argument in entry.settings
        with pytest.raises(InputError, match=entry.match):
            result(pipe, entry.settings)
        return
    if isinstance(entry, Beside):
        assert argument in entry.second
        assert differ(result(pipe, {**entry.first, **entry.second}), result(pipe, entry.first))
        return
    assert argument in entry
    if name not in plain:
        plain[name] = result(pipe, {})
        assert not differ(plain[name], result(pipe, {}))  # by itself, nothing changes
    assert differ(result(pipe, entry), plain[name])


def test_the_table_has_nothing_else():
    there = {argument for _, argument in PAIRS} | {f"{name} {argument}" for name, argument in PAIRS}
    assert set(TABLE) <= there
    calls = [inspect.signature(getattr(ppsd3, name).__call__).parameters.values() for name in PIPELINE_CLASSES]
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for call in calls for parameter in call)


TEXT, INPAINT, CONTROL_PIPELINE = (
    "StableDiffusion3Pipeline",
    "StableDiffusion3InpaintPipeline",
    "StableDiffusion3ControlNetPipeline",
)
WRONG = [
    (TEXT, {"guidance_scale": math.nan}, "`guidance_scale` is nan"),
    (TEXT, {"guidance_scale": 1e308}, "`guidance_scale` is 1e.308"),
    (TEXT, {"sigmas": [0.1, 0.5]}, "`sigmas` goes from 0.1 to 0.5 at place 1.*from high to low"),
    (TEXT, {"sigmas": [-0.5]}, r"`sigmas\[0\]` is -0.5; .* from 0 to 1"),
    (TEXT, {"sigmas": [7.0, 1.0]}, r"`sigmas\[0\]` is 7.0"),
    (TEXT, {"sigmas": [1.0, math.nan]}, r"`sigmas\[1\]` is nan"),
    (TEXT, {"sigmas": []}, "sigmas 0"),
    (TEXT, {"timesteps": [2000.0]}, "`timesteps` begins at 2000.0, but this scheduler's go from 1000 to 0"),
    (TEXT, {"num_inference_steps": 10**9}, "`num_inference_steps` is 1000000000; .* from 1 to 10000"),
    (TEXT, {"num_inference_steps": True}, "`num_inference_steps` is True"),
    (TEXT, {"num_inference_steps": 28.0}, "Pass 28"),
    (TEXT, {"height": "64"}, "`height` is '64'.*Pass 64 without quotes"),
    (TEXT, {"prompt": b"a star"}, r"Decode it: value.decode\(\)"),
    (TEXT, {"prompt": ["a", None]}, r"`prompt\[1\]` is None; it has to be a str"),
    (TEXT, {"prompt": [["a"]]}, r"`prompt\[0\]` is \['a'\]"),
    (TEXT, {"prompt": "\ud800"}, "`prompt` holds .*half of a character"),
    (TEXT, {"prompt": "(" * 100_001}, "`prompt` has 100,001 characters"),
    (TEXT, {"callback_on_step_end": lambda: None}, "a function of 4 arguments"),
    (TEXT, {"callback_on_step_end": lambda *a: 3}, "what the callback returned` is 3"),
    (TEXT, {"callback_on_step_end": lambda *a: {"latents": paddle.ones([1])}}, r"latents of the shape \[1\]"),
    (TEXT, {"latents": np.full([1, 4, 16, 16], np.nan)}, "`latents` holds NaN"),
    (TEXT, {"latents": np.ones([1, 4, 16, 16], "complex64")}, "`latents` is a numpy ndarray .* of complex64"),
    (TEXT, {"joint_attention_kwargs": [1]}, "`joint_attention_kwargs` is .*a dict"),
    (TEXT, {"clip_skip": 9}, "`clip_skip` is 9"),
    (TEXT, {"guidance": 7.0}, r"`guidance` is 7.0; .*ClassifierFreeGuidance\(7.0\)"),
    (INPAINT, {"mask_image": np.full([SIDE, SIDE], np.nan, "float32")}, "`mask_image` holds NaN"),
    (INPAINT, {"strength": 1.5}, "`strength` is 1.5; .* from 0 to 1"),
    (INPAINT, {"padding_mask_crop": -1}, "`padding_mask_crop` is -1"),
    (CONTROL_PIPELINE, {"controlnet_conditioning_scale": [1.0, 1.0]}, "a list of 1"),
    (CONTROL_PIPELINE, {"control_guidance_start": [0.0, "a"]}, r"`control_guidance_start\[1\]` is 'a'"),
]


@pytest.mark.parametrize("name, settings, message", WRONG, ids=steady)
def test_a_wrong_value_is_named_with_its_remedy(pipes, name, settings, message):
    with pytest.raises(InputError, match=message):
        result(pipes[name], settings)


def test_values_of_numpy(pipes):
    pipe = pipes[TEXT]
    settings = {"num_inference_steps": 2, "guidance_scale": 7.5, "height": 32, "sigmas": [1.0, 0.5], "latents": None}
    settings["latents"] = noise()[:, :, :8]
    of_numpy = {
        "num_inference_steps": np.int64(2),
        "guidance_scale": np.float32(7.5),
        "height": np.array(32),
        "sigmas": np.array([1.0, 0.5]),
        "latents": settings["latents"].numpy(),
    }
    assert np.array_equal(result(pipe, of_numpy)[1], result(pipe, settings)[1])


@pytest.mark.parity
def test_tensors_of_torch(pipes):
    torch = pytest.importorskip("torch")
    pipe = pipes[TEXT]
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = dict(zip(names, pipe.encode_prompt("a star", None, None)))
    ours = {"prompt": REMOVED, "latents": noise(), **embeds}
    theirs = {name: torch.from_numpy(tensor.numpy()) for name, tensor in ours.items() if tensor is not REMOVED}
    assert np.array_equal(result(pipe, {"prompt": REMOVED, **theirs})[1], result(pipe, ours)[1])
