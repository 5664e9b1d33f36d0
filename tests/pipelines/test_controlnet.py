"""Pipelines with ControlNets: what control does, what is refused, and how they are made, saved and loaded."""

import numpy as np
import paddle
import pytest
from helpers import tiny
from PIL import Image

import ppsd3
from ppsd3 import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    SD3CannyImageProcessor,
    SD3ControlNetModel,
    SD3MultiControlNetModel,
    StableDiffusion3ControlNetImg2ImgPipeline,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    TorchGenerator,
)
from ppsd3.pipelines.stable_diffusion_3.step_caching import FirstBlockCache, TaylorCache
from ppsd3.utils.errors import InputError

SIDE = tiny.SIDE
POOLED = tiny.TRANSFORMER["pooled_projection_dim"]
JOINT = {**tiny.TRANSFORMER, "num_layers": 2}
KINDS = {
    "joint": JOINT,
    "pooled": {**JOINT, "force_zeros_for_pooled_projection": False},
    "without text": {
        **JOINT,
        "joint_attention_dim": None,
        "use_pos_embed": False,
        "force_zeros_for_pooled_projection": False,
    },
    "mask": {**JOINT, "extra_conditioning_channels": 1},
}
TASKS = {
    StableDiffusion3ControlNetPipeline: "joint",
    StableDiffusion3ControlNetImg2ImgPipeline: "without text",
    StableDiffusion3ControlNetInpaintingPipeline: "mask",
}


def picture(seed=0, size=(SIDE, SIDE)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype="uint8"))


def mask():
    array = np.zeros((SIDE, SIDE), "uint8")
    array[10:40, 20:50] = 255
    return Image.fromarray(array)


def make_net(kind, seed=30):
    net = tiny.randomize(SD3ControlNetModel(**KINDS[kind]), seed, 0.5)
    net.eval()
    return net


@pytest.fixture(scope="module")
def plain():
    return tiny.make_pipeline()


@pytest.fixture(scope="module")
def pipes(plain):
    made = {task: task.from_pipe(plain, controlnet=make_net(kind)) for task, kind in TASKS.items()}
    made["pooled"] = StableDiffusion3ControlNetPipeline.from_pipe(plain, controlnet=make_net("pooled"))
    nets = [make_net("joint", 40), make_net("without text", 41)]
    made["two"] = StableDiffusion3ControlNetPipeline.from_pipe(plain, controlnet=nets)
    return made


def own(pipe):
    settings = {"control_image": picture()}
    if isinstance(pipe, StableDiffusion3ControlNetImg2ImgPipeline):
        settings["image"] = picture(5)
    if isinstance(pipe, StableDiffusion3ControlNetInpaintingPipeline):
        settings["control_mask"] = mask()
    if isinstance(pipe.controlnet, SD3MultiControlNetModel):
        settings["control_image"] = [picture(), picture(1)]
    return settings


def draw(pipe, **changes):
    settings = {"prompt": "a red circle", "num_inference_steps": 4, "output_type": "np", "generator": TorchGenerator(3)}
    images = pipe(**{**settings, **own(pipe), **changes}).images
    return np.asarray(images.numpy() if isinstance(images, paddle.Tensor) else images)


def differ(a, b):
    return a.shape != b.shape or np.abs(a - b).max() > 1e-4


CHANGES = {
    "control_image": {"control_image": picture(1)},
    "controlnet_conditioning_scale": {"controlnet_conditioning_scale": 0.2},
    "control_guidance_start": {"control_guidance_start": 0.5},
    "control_guidance_end": {"control_guidance_end": 0.5},
    "guidance_scale": {"guidance_scale": 1.0},
    "width": {"width": 32},
    "mu": (InputError, {"mu": 0.5}),
    "guidance": {"guidance": ppsd3.SkipLayerGuidance(4.0, [1], start=-1.0)},
    "callback_on_step_end": {
        "callback_on_step_end": lambda pipe, step, t, tensors: {"latents": tensors["latents"] * 0.5}
    },
    "sigmas": {"sigmas": [1.0, 0.7, 0.3, 0.1]},
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("argument", CHANGES)
def test_arguments_act_or_are_refused(pipes, task, argument):
    change = CHANGES[argument]
    if isinstance(change, tuple):
        with pytest.raises(change[0], match=argument):
            draw(pipes[task], **change[1])
    else:
        assert differ(draw(pipes[task]), draw(pipes[task], **change))


def test_mask_and_strength_act(pipes):
    inpaint = pipes[StableDiffusion3ControlNetInpaintingPipeline]
    assert differ(draw(inpaint), draw(inpaint, control_mask=Image.new("L", (SIDE, SIDE), 255)))
    redraw = pipes[StableDiffusion3ControlNetImg2ImgPipeline]
    assert differ(draw(redraw), draw(redraw, strength=0.9))
    assert differ(draw(redraw), draw(redraw, image=picture(6)))


def test_no_weight_is_no_control(plain, pipes):
    without = draw_plain(plain)
    for name in (StableDiffusion3ControlNetPipeline, "two"):
        assert np.array_equal(draw(pipes[name], controlnet_conditioning_scale=0.0), without)
        assert differ(draw(pipes[name]), without)


def draw_plain(pipe, **changes):
    settings = {"prompt": "a red circle", "num_inference_steps": 4, "output_type": "np", "generator": TorchGenerator(3)}
    return pipe(**{**settings, **changes}).images


def test_acts_at_its_steps_only(pipes):
    pipe = pipes[StableDiffusion3ControlNetPipeline]
    calls = []
    hook = pipe.controlnet.register_forward_post_hook(lambda *_: calls.append(1))
    draw(pipe, num_inference_steps=10, control_guidance_start=0.2, control_guidance_end=0.5)
    hook.remove()
    assert len(calls) == 3  # steps 2, 3 and 4; guidance asks for both conditions at once


def test_two_nets_are_the_sum_of_both(pipes, plain):
    two = pipes["two"]
    first = StableDiffusion3ControlNetPipeline.from_pipe(plain, controlnet=two.controlnet.nets[0])
    alone = draw(first, control_image=picture())
    assert np.allclose(draw(two, controlnet_conditioning_scale=[1.0, 0.0]), alone, atol=1e-5)
    assert differ(draw(two), alone)


def test_batch_equals_single(pipes):
    pipe = pipes[StableDiffusion3ControlNetPipeline]
    prompts, pictures = ["a red circle", "a star"], [picture(), picture(1)]
    both = draw(pipe, prompt=prompts, control_image=pictures, generator=[TorchGenerator(1), TorchGenerator(2)])
    for i in range(2):
        alone = draw(pipe, prompt=prompts[i], control_image=pictures[i], generator=TorchGenerator(i + 1))
        assert np.abs(both[i] - alone[0]).max() < 1e-4


def test_kinds_of_control_pictures(pipes):
    pipe = pipes[StableDiffusion3ControlNetPipeline]
    array = np.asarray(picture(), "float32") / 255
    expected = draw(pipe)
    assert np.allclose(draw(pipe, control_image=array), expected, atol=1e-4)
    assert np.allclose(draw(pipe, control_image=paddle.to_tensor(array.transpose(2, 0, 1))), expected, atol=1e-4)
    pixels = paddle.to_tensor(array.transpose(2, 0, 1)[None]) * 2 - 1
    with paddle.no_grad():
        latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert np.allclose(draw(pipe, control_image=latents), expected, atol=1e-4)


def test_pooled_projections(pipes):
    pipe, given = pipes["pooled"], paddle.full([1, POOLED], 3.0)
    assert differ(draw(pipe), draw(pipe, controlnet_pooled_projections=given))
    twice = draw(pipe, controlnet_pooled_projections=given.expand([2, POOLED]))
    assert np.allclose(twice, draw(pipe, controlnet_pooled_projections=given), atol=1e-5)
    with pytest.raises(InputError, match="has no effect"):
        draw(pipes[StableDiffusion3ControlNetPipeline], controlnet_pooled_projections=given)
    for wrong in ([3, POOLED], [1, 5], [POOLED]):
        with pytest.raises(InputError, match="has to be"):
            draw(pipe, controlnet_pooled_projections=paddle.zeros(wrong))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"control_image": None}, "needs a `control_image`"),
        ({"controlnet_conditioning_scale": "1"}, "controlnet_conditioning_scale"),
        ({"controlnet_conditioning_scale": [1.0, 1.0]}, "a list of 1"),
        ({"control_guidance_start": 0.6, "control_guidance_end": 0.5}, "start < end"),
        ({"control_guidance_end": 1.5}, "number from 0 to 1"),
        ({"control_image": [picture(), picture(), picture()]}, "holds 3 pictures"),
    ],
)
def test_refused(pipes, changes, message):
    with pytest.raises(InputError, match=message):
        draw(pipes[StableDiffusion3ControlNetPipeline], **changes)


def test_two_nets_need_two_pictures(pipes):
    with pytest.raises(InputError, match="list of 2 pictures"):
        draw(pipes["two"], control_image=picture())


def test_mask_goes_with_a_net_that_reads_one(plain, pipes):
    with pytest.raises(InputError, match="ControlNetInpaintingPipeline"):
        draw(StableDiffusion3ControlNetPipeline.from_pipe(plain, controlnet=make_net("mask")))
    with pytest.raises(InputError, match="StableDiffusion3ControlNetPipeline"):
        draw(StableDiffusion3ControlNetInpaintingPipeline.from_pipe(plain, controlnet=make_net("joint")))
    with pytest.raises(InputError, match="control_mask"):
        draw(pipes[StableDiffusion3ControlNetInpaintingPipeline], control_mask=None)


def test_a_net_of_another_model_is_refused(plain):
    other = SD3ControlNetModel(**{**JOINT, "num_attention_heads": 2, "caption_projection_dim": 16})
    with pytest.raises(InputError, match="width"):
        draw(StableDiffusion3ControlNetPipeline.from_pipe(plain, controlnet=other))


def test_from_pipe_and_auto_pipelines(plain, pipes):
    with pytest.raises(InputError, match="needs controlnet"):
        StableDiffusion3ControlNetPipeline.from_pipe(plain)
    pipe = pipes[StableDiffusion3ControlNetPipeline]
    assert type(AutoPipelineForText2Image.from_pipe(pipe)) is StableDiffusion3ControlNetPipeline
    assert type(AutoPipelineForImage2Image.from_pipe(pipe)) is StableDiffusion3ControlNetImg2ImgPipeline
    assert type(AutoPipelineForInpainting.from_pipe(pipe)) is StableDiffusion3ControlNetInpaintingPipeline
    assert type(AutoPipelineForImage2Image.from_pipe(pipe, controlnet=None)) is StableDiffusion3Img2ImgPipeline
    assert type(StableDiffusion3Pipeline.from_pipe(pipe)) is StableDiffusion3Pipeline
    assert AutoPipelineForText2Image.from_pipe(pipe).controlnet is pipe.controlnet


@pytest.mark.parametrize("name", [StableDiffusion3ControlNetPipeline, "two"])
@pytest.mark.parametrize("load_components", ["all", "on_demand"])
def test_saved_and_loaded(pipes, name, load_components, tmp_path):
    pipe = pipes[name]
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, load_components=load_components)
    assert type(again) is StableDiffusion3ControlNetPipeline
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(draw_again(again, pipe), draw(pipe))


def draw_again(pipe, made_from):
    settings = {"prompt": "a red circle", "num_inference_steps": 4, "output_type": "np", "generator": TorchGenerator(3)}
    return pipe(**settings, **own(made_from)).images


def test_weights_in_16_bits_and_int8(pipes, tmp_path):
    pipe = pipes[StableDiffusion3ControlNetPipeline]
    pipe.save_pretrained(tmp_path)
    for change in ("storage", "int8"):
        loaded = DiffusionPipeline.from_pretrained(tmp_path, storage_dtype="float16" if change == "storage" else None)
        loaded.set_progress_bar_config(disable=True)
        if change == "int8":
            loaded.quantize("int8")
            assert loaded.controlnet.is_quantized
        drawn = draw(loaded)
        assert 0 < np.abs(drawn - draw(pipe)).mean() < 0.05


def test_caches_and_samplers_take_control(pipes):
    pipe = StableDiffusion3ControlNetPipeline.from_pipe(pipes[StableDiffusion3ControlNetPipeline])
    expected = draw(pipe, num_inference_steps=10)
    for cache in (TaylorCache(warmup=2), FirstBlockCache(threshold=5.0, warmup=2)):
        pipe.enable_cache(cache)
        cached = draw(pipe, num_inference_steps=10)
        assert cache.evaluations < cache.calls and 0 < np.abs(cached - expected).mean() < 0.2
    pipe.disable_cache()
    pipe.scheduler = ppsd3.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    assert differ(draw(pipe, num_inference_steps=10), expected)


def test_canny_processor():
    pixels = np.zeros((1, 16, 16, 3), "float32")
    pixels[:, :8] = 1.0
    processed = SD3CannyImageProcessor().preprocess(pixels).numpy()
    assert np.allclose(np.unique(processed), [0.5, 128.0])
