"""float16 and bfloat16 as GPUs compute in them: pictures stay near those in float32, whatever draws them.

The bounds, of 255 levels, root mean square, are of the tiny models, whose weights are random and steep: with the
timesteps of 5 steps, whose sinusoids bfloat16 rounds badly, they are twice as far off as with those of 4 or 6.
"""

import copy

import numpy as np
import paddle
import pytest
from helpers import ip_adapters, tiny
from helpers.sixteen_bits import sixteen_bits
from helpers.tiny import mask, picture
from safetensors.numpy import save_file

import ppsd3
from ppsd3 import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    GuidanceInterval,
    GuidanceRescale,
    NoGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    TorchGenerator,
    UniPCMultistepScheduler,
)
from ppsd3.ops.shapes import cast
from ppsd3.pipelines.component_classes import PIPELINE_CLASSES
from ppsd3.pipelines.stable_diffusion_3 import guidance as guidances
from ppsd3.pipelines.stable_diffusion_3.denoising import DenoisingState, denoise
from ppsd3.pipelines.stable_diffusion_3.prompt_encoding import TextCondition
from ppsd3.pipelines.stable_diffusion_3.step_caching import EasyCache, FirstBlockCache, TaylorCache
from ppsd3.schedulers.flow_scheduler import FlowScheduler

BOUNDS = {"float16": 0.5, "bfloat16": 3.0}
DTYPES = list(BOUNDS)
LAYOUTS = {"SD3": {}, "SD3.5-medium": tiny.SD35}
SCALE = 3.5
GUIDANCES = {
    "none": NoGuidance(),
    "classifier-free": ClassifierFreeGuidance(SCALE),
    "CFG-Zero*": ClassifierFreeZeroStarGuidance(SCALE),
    "APG": AdaptiveProjectedGuidance(SCALE, eta=0.5, momentum=-0.5),
    "interval": GuidanceInterval(SCALE, 0.25, 0.75),
    "rescaled": GuidanceRescale(SCALE, 0.7),
    "skip-layer": SkipLayerGuidance(SCALE, [1], start=-1.0, stop=1.0),
    "PAG": PerturbedAttentionGuidance(SCALE, layers=[1], pag_scale=1.5),
    "all at once": GuidanceInterval(
        GuidanceRescale(PerturbedAttentionGuidance(SkipLayerGuidance(AdaptiveProjectedGuidance(SCALE), [2]), [1]), 0.5)
    ),
}
SAMPLERS = {
    "Euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "Euler, stochastic": FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True),
    "Heun": FlowMatchHeunDiscreteScheduler(shift=3.0),
    "LCM": FlowMatchLCMScheduler(shift=3.0),
    "DPM-Solver++": DPMSolverMultistepScheduler(flow_shift=3.0),
    "DPM-Solver++, stochastic": DPMSolverMultistepScheduler(flow_shift=3.0, algorithm_type="sde-dpmsolver++"),
    "DPM-Solver++, third order": DPMSolverMultistepScheduler(flow_shift=3.0, solver_order=3),
    "UniPC": UniPCMultistepScheduler(flow_shift=3.0),
}
CACHES = {"Taylor": TaylorCache(2, warmup=1), "Easy": EasyCache(5.0, warmup=2), "first block": FirstBlockCache(5.0, 2)}


def controlnet(dtype, **config):
    net = tiny.randomize(ppsd3.SD3ControlNetModel(**{**tiny.TRANSFORMER, "num_layers": 2, **config}), 30, 0.25)
    return net.to(dtype=dtype)


@pytest.fixture(scope="module")
def pipes():
    """(layout, dtype of the networks) -> pipeline."""
    made = {}

    def make(layout="SD3", dtype="float32"):
        if (layout, dtype) not in made:
            made[layout, dtype] = tiny.make_pipeline(**LAYOUTS[layout]).to(dtype=dtype)
        return made[layout, dtype]

    return make


def draw(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    defaults = {"num_inference_steps": 3, "guidance_scale": SCALE, "negative_prompt": "blue", "output_type": "np"}
    return pipe("a red circle", generator=TorchGenerator(3), **{**defaults, **arguments}).images


def difference(images, others):
    return 255 * float(np.sqrt(((images - others) ** 2).mean()))


def check_bounds(make, dtypes=DTYPES, times=1.0, **arguments):
    """The pictures of ``make(dtype)`` lie within the bounds of ``make("float32")``'s, and are not the same."""
    expected = draw(make("float32"), **arguments)
    for dtype in dtypes:
        with sixteen_bits():
            found = difference(draw(make(dtype), **arguments), expected)
        assert 0 < found < times * BOUNDS[dtype], (dtype, found)


# The emulation itself.


@pytest.mark.parametrize(
    "dtype, step, largest", [(paddle.float16, 2.0**-10, 65504.0), (paddle.bfloat16, 2.0**-7, 3.38e38)]
)
def test_results_are_rounded_to_nearest_and_overflow(dtype, step, largest):
    x = paddle.to_tensor([1.0, largest]).astype(dtype)
    add = paddle.Tensor.__add__
    with sixteen_bits() as calls:
        found = [(x + y).astype("float32")[0].item() for y in (step / 4, 0.75 * step)]
        assert calls["add"] == 2
        assert not paddle.isfinite((x * 2.0).astype("float32"))[1]
        y = paddle.ones([2], dtype)
        y += x
        assert y.dtype == dtype and y[0].item() == 2.0
    assert found == [1.0, 1.0 + step] and paddle.Tensor.__add__ is add


def test_mixed_dtypes_fail_with_operator_and_place():
    layer = ppsd3.ops.Linear(2, 2)
    with pytest.raises(AssertionError, match=r"matmul of float16 and float32 at ops[/\\]linear.py:\d+"), sixteen_bits():
        layer(paddle.ones([1, 2]).astype("float16"))
    with sixteen_bits(allowed_mixtures=("matmul", "add")):
        layer(paddle.ones([1, 2]).astype("float16"))


# Sums over pictures as large as SD3's.


class Answers:
    """In place of the transformer: large velocities that depend on the prompt and on the weakened layers.

    They are numbers of ``dtype``, and are given in that of the latents.
    """

    def __init__(self, shape, dtype):
        rng = np.random.default_rng(0)
        common = 6 * rng.standard_normal(shape)
        self.rows = [rounded(common + rng.standard_normal(shape), dtype) for _ in range(4)]
        self.noise = rounded(rng.standard_normal(shape), dtype)

    def __call__(self, latents, step, query):
        negative, positive, without, perturbed = (cast(row, latents.dtype) for row in self.rows)
        if query.skip_layers is not None:
            return without
        if query.perturbed_layers:
            return perturbed
        return paddle.concat([negative, positive]) if query.condition.embeds.shape[0] > len(latents) else positive


def rounded(array, dtype):
    """float32 numbers that ``dtype`` has."""
    return cast(cast(paddle.to_tensor(array.astype("float32")), dtype), paddle.float32)


def sample(answers, guidance, sampler, dtype, steps):
    sampler = copy.deepcopy(sampler)
    sampler.set_timesteps(steps)
    one = TextCondition(paddle.zeros([1, 1, 1]), paddle.zeros([1, 1]))
    state = DenoisingState(cast(answers.noise, dtype), guidance.expand(one, one), guidance)
    for _ in denoise(answers, sampler, sampler.timesteps, state, generator=TorchGenerator(0)):
        assert state.latents.dtype == dtype
    return state.latents.astype("float32").numpy()


def check_sums(guidance, sampler, side, steps=2):
    for dtype, bound in ((paddle.float16, 2e-3), (paddle.bfloat16, 1.6e-2)):
        answers = Answers([1, 16, side, side], dtype)
        expected = sample(answers, guidance, sampler, paddle.float32, steps)
        with sixteen_bits():
            found = sample(answers, guidance, sampler, dtype, steps)
        assert np.abs(found - expected).max() <= bound * np.abs(expected).max()  # NaN fails too


@pytest.mark.parametrize("name", ["CFG-Zero*", "APG", "rescaled"])
def test_sums_over_a_picture_do_not_overflow(name):
    check_sums(GUIDANCES[name], SAMPLERS["Euler"], 64)


@pytest.mark.machine
@pytest.mark.parametrize("name", GUIDANCES)
def test_every_guidance_is_finite_at_full_size(name):
    check_sums(GUIDANCES[name], SAMPLERS["Euler"], 128)


@pytest.mark.machine
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_finite_at_full_size(name):
    check_sums(GUIDANCES["classifier-free"], SAMPLERS[name], 128, steps=4)


def test_every_guidance_and_sampler_is_tried():
    def kinds(guidance):
        return {type(guidance)} | (kinds(guidance.base) if hasattr(guidance, "base") else set())

    public = {value for value in vars(guidances).values() if isinstance(value, type)}
    concrete = {kind for kind in public if issubclass(kind, guidances.Guidance) and not kind.__abstractmethods__}
    assert concrete - {guidances.WrappedGuidance} <= set().union(*map(kinds, GUIDANCES.values()))
    samplers = {
        kind for kind in FlowScheduler._family() if kind.__name__ in vars(ppsd3) or kind.__name__ in ppsd3.__all__
    }
    assert samplers - {FlowScheduler} <= {type(sampler) for sampler in SAMPLERS.values()}
    tried = {f"StableDiffusion3{task}Pipeline" for task in [*TASKS, *CONTROLLED]}
    assert {name for name in PIPELINE_CLASSES if name.startswith("StableDiffusion3")} <= tried


# Pictures, end to end.


def test_pictures_in_sixteen_bits(pipes):
    check_bounds(lambda dtype: pipes("SD3.5-medium", dtype), skip_guidance_layers=[1])


@pytest.mark.machine
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", GUIDANCES)
def test_every_guidance(pipes, layout, name):
    check_bounds(lambda dtype: pipes(layout, dtype), guidance=GUIDANCES[name])


@pytest.mark.machine
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler(pipes, name):
    check_bounds(lambda dtype: with_parts(pipes("SD3", dtype), scheduler=SAMPLERS[name]), num_inference_steps=6)


@pytest.mark.machine
@pytest.mark.parametrize("name", CACHES)
def test_every_cache(pipes, name):
    def make(dtype):
        pipe = with_parts(pipes("SD3", dtype))
        pipe.enable_cache(CACHES[name])
        return pipe

    check_bounds(make, num_inference_steps=8)
    assert CACHES[name].evaluations < CACHES[name].calls


def with_parts(pipe, task="", **parts):
    return getattr(ppsd3, f"StableDiffusion3{task}Pipeline").from_pipe(pipe, **parts)


TASKS = {
    "": {},
    "PAG": {"pag_scale": 1.5},
    "PAGImg2Img": {"image": picture(), "pag_scale": 1.5},
    "Img2Img": {"image": picture(), "strength": 0.7},
    "Inpaint": {"image": picture(), "mask_image": mask(), "strength": 0.7},
}
CONTROLLED = {
    "ControlNet": ({}, {"control_image": picture()}),
    "ControlNetImg2Img": (
        {"joint_attention_dim": None, "use_pos_embed": False, "force_zeros_for_pooled_projection": False},
        {"image": picture(), "control_image": picture(1)},
    ),
    "ControlNetInpainting": (
        {"extra_conditioning_channels": 1},
        {"control_image": picture(), "control_mask": mask()},
    ),
}


@pytest.mark.machine
@pytest.mark.parametrize("task", TASKS)
def test_every_task(pipes, task):
    check_bounds(lambda dtype: with_parts(pipes("SD3", dtype), task), **TASKS[task])


@pytest.mark.machine
@pytest.mark.parametrize("task", CONTROLLED)
def test_every_task_with_a_controlnet(pipes, task):
    config, arguments = CONTROLLED[task]
    check_bounds(
        lambda dtype: with_parts(pipes("SD3", dtype), task, controlnet=controlnet(dtype, **config)), **arguments
    )


@pytest.mark.machine
def test_ip_adapter(pipes, tmp_path):
    attentions = len(pipes("SD3.5-medium").transformer.attn_processors)
    save_file(ip_adapters.tensors(attentions), tmp_path / ip_adapters.FILE)

    def make(dtype):
        encoder = tiny.randomize(ppsd3.SiglipVisionModel(**ip_adapters.SIGLIP), 7).to(dtype=dtype)
        encoder.eval()
        pipe = tiny.make_pipeline(**tiny.SD35).to(dtype=dtype)
        processor = ppsd3.SiglipImageProcessor(**ip_adapters.PROCESSOR)
        pipe = with_parts(pipe, image_encoder=encoder, feature_extractor=processor)
        pipe.load_ip_adapter(tmp_path, weight_name=ip_adapters.FILE, image_encoder_folder=None)
        return pipe

    check_bounds(make, ip_adapter_image=picture())


@pytest.mark.machine
@pytest.mark.parametrize("fused", [False, True])
def test_lora(fused):
    def make(dtype):
        pipe = tiny.make_pipeline().to(dtype=dtype)
        config = ppsd3.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")
        pipe.transformer.add_adapter(config, adapter_name="a")
        rng = np.random.default_rng(0)
        for name, parameter in pipe.transformer.named_parameters():
            if "lora" in name:
                values = 0.1 * rng.standard_normal(parameter.shape).astype("float32")
                parameter.set_value(cast(paddle.to_tensor(values), parameter.dtype))
        if fused:
            pipe.fuse_lora()
        return pipe

    check_bounds(make)


# Networks, and what is given, in dtypes of their own.


def test_a_vae_and_a_text_encoder_of_another_dtype(pipes):
    def make(dtype):
        exact = {"vae": pipes().vae, "text_encoder_3": pipes().text_encoder_3}
        return with_parts(pipes("SD3", dtype), "Img2Img", **exact)

    check_bounds(make, ["bfloat16"], image=picture(), strength=0.7, num_images_per_prompt=2)


@pytest.mark.parametrize("own", ["bfloat16", "float32"])
def test_a_controlnet_of_another_dtype(pipes, own):
    pooled = paddle.ones([1, tiny.TRANSFORMER["pooled_projection_dim"]])

    def make(dtype):
        other = {"float32": "float32", "bfloat16": own, "float16": own}[dtype]
        net = controlnet(other, force_zeros_for_pooled_projection=False)
        return with_parts(pipes("SD3", dtype), "ControlNet", controlnet=net)

    check_bounds(
        make,
        ["float16" if own == "bfloat16" else "bfloat16"],
        6.0,
        control_image=picture(),
        controlnet_pooled_projections=pooled,
    )


def test_callbacks_may_answer_in_float32(pipes):
    def to_float32(pipe, step, timestep, tensors):
        return {name: tensor.astype("float32") for name, tensor in tensors.items()}

    names = ["latents", "prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds"]
    latents = paddle.to_tensor(np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype("float32"))
    given = {"callback_on_step_end": to_float32, "callback_on_step_end_tensor_inputs": names, "latents": latents}
    check_bounds(lambda dtype: pipes("SD3", dtype), ["float16"], **given)


def test_rows_are_repeated_without_an_operator_that_old_gpu_builds_lack(pipes):
    pipe = pipes("SD3", "float16")
    with sixteen_bits() as calls:
        images = draw(pipe, num_images_per_prompt=2, num_inference_steps=1)
    assert len(images) == 2 and not {"repeat_interleave", "repeat_interleave_with_tensor_index"} & set(calls)


def test_previews_follow_a_straight_line_in_float32(pipes):
    shown = []
    preview = ppsd3.LatentPreview(factors=np.eye(4)[:, :3])
    with sixteen_bits():
        draw(pipes("SD3", "bfloat16"), callback_on_step_end=preview.callback(lambda step, images: shown.append(images)))
    assert len(shown) == 3
