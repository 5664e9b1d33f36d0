"""Guidance objects: each acts, in every task, and says what it cannot do."""

import numpy as np
import paddle
import pytest
from helpers import tiny

import ppsd3
from ppsd3 import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    GuidanceInterval,
    GuidanceRescale,
    NoGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    TorchGenerator,
)
from ppsd3.pipelines.stable_diffusion_3.guidance import Moment, _deviation
from ppsd3.utils.errors import InputError

GUIDANCES = {
    "none": NoGuidance,
    "another scale": lambda: ClassifierFreeGuidance(3.0),
    "CFG-Zero*": lambda: ClassifierFreeZeroStarGuidance(7.0),
    "APG": lambda: AdaptiveProjectedGuidance(7.0, eta=0.0, norm_threshold=5.0, momentum=-0.5),
    "interval": lambda: GuidanceInterval(7.0, 0.25, 0.75),
    "rescaled": lambda: GuidanceRescale(7.0, 0.7),
    "skip-layer": lambda: SkipLayerGuidance(7.0, [1], start=-1.0, stop=1.0),
    "PAG": lambda: PerturbedAttentionGuidance(7.0, layers=[0, 1]),
    "PAG alone": lambda: PerturbedAttentionGuidance(1.0, layers="blocks.1"),
    "all at once": lambda: GuidanceInterval(
        GuidanceRescale(PerturbedAttentionGuidance(SkipLayerGuidance(AdaptiveProjectedGuidance(5.0), [2]), [1]), 0.5),
        0.0,
        0.8,
    ),
}


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def draw(pipe, **settings):
    settings = {"num_inference_steps": 4, "output_type": "np", "negative_prompt": "blue", **settings}
    return pipe("a star", generator=TorchGenerator(3), **settings).images


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("task", ["", "Img2Img", "Inpaint"])
def test_acts_in_every_task(pipe, name, task):
    pipe = getattr(ppsd3, f"StableDiffusion3{task}Pipeline").from_pipe(pipe)
    picture = np.random.RandomState(0).rand(1, 64, 64, 3).astype("float32")
    own = {"image": picture} if task else {}
    if task == "Inpaint":
        own["mask_image"] = np.ones((1, 64, 64), "float32")
    plain = draw(pipe, **own)
    guided = draw(pipe, guidance=GUIDANCES[name](), **own)
    assert np.isfinite(guided).all() and np.abs(guided - plain).max() > 1e-3
    assert np.array_equal(guided, draw(pipe, guidance=GUIDANCES[name](), **own))


def test_objects_say_the_same_as_arguments(pipe):
    assert np.array_equal(draw(pipe, guidance=ClassifierFreeGuidance(3.0)), draw(pipe, guidance_scale=3.0))
    assert np.array_equal(draw(pipe, guidance=NoGuidance()), draw(pipe, guidance_scale=1.0))
    options = {"skip_guidance_layers": [1], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 0.9}
    assert np.array_equal(draw(pipe, guidance=SkipLayerGuidance(7.0, [1], 2.8, -1.0, 0.9)), draw(pipe, **options))


def test_an_interval_asks_less(pipe):
    rows = []
    forward = pipe.transformer.forward

    def count(*args, **options):
        rows.append(options["prepared"].context.shape[0])
        return forward(*args, **options)

    pipe.transformer.forward = count
    try:
        draw(pipe, guidance=GuidanceInterval(7.0, 0.25, 0.75))
    finally:
        del pipe.transformer.forward
    assert rows == [1, 2, 2, 1]


def test_neutral_settings_change_nothing(pipe):
    plain = draw(pipe)
    for neutral in (
        GuidanceInterval(7.0),
        GuidanceRescale(7.0, 0.0),
        AdaptiveProjectedGuidance(7.0, eta=1.0, norm_threshold=0.0),
        PerturbedAttentionGuidance(7.0, pag_scale=0.0),
        PerturbedAttentionGuidance(7.0, start=0.0, stop=0.0),
    ):
        assert np.abs(draw(pipe, guidance=neutral) - plain).max() < 1e-4


def test_zero_star_is_the_nearest_scale():
    rng = np.random.RandomState(0)
    negative, positive = (paddle.to_tensor(rng.randn(2, 3, 4, 4).astype("float32")) for _ in range(2))
    guidance = ClassifierFreeZeroStarGuidance(1.0, zero_init_steps=1)
    assert float(guidance.weigh(negative, positive, Moment(0, 4, 1000.0)).abs().max()) == 0
    # at scale 0 it is the negative velocity times the factor that brings it nearest to the positive one
    guidance.scale = 0.0
    scaled = guidance.weigh(negative, positive, Moment(1, 4, 750.0))
    error = ((positive - scaled) ** 2).sum()
    for other in (0.99, 1.01):
        assert float(((positive - scaled * other) ** 2).sum()) > float(error)


def test_attention_is_put_back(pipe):
    before = pipe.transformer.attn_processors
    draw(pipe, guidance=PerturbedAttentionGuidance(7.0))
    assert pipe.transformer.attn_processors == before


def test_the_pag_pipeline(pipe):
    pag = ppsd3.StableDiffusion3PAGPipeline.from_pipe(pipe)
    pag.set_pag_applied_layers("blocks.0")
    expected = draw(pipe, guidance=PerturbedAttentionGuidance(5.0, "blocks.0", 2.0))
    assert np.array_equal(draw(pag, guidance_scale=5.0, pag_scale=2.0), expected)


def test_a_callback_changes_the_object(pipe):
    guidance = ClassifierFreeGuidance(7.0)

    def weaker(pipeline, step, timestep, tensors):
        guidance.scale = 2.0
        return {}

    def wrong(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 2.0
        return {}

    assert np.abs(draw(pipe, guidance=guidance, callback_on_step_end=weaker) - draw(pipe)).max() > 1e-3
    with pytest.raises(InputError, match="change that object"):
        draw(pipe, guidance=ClassifierFreeGuidance(7.0), callback_on_step_end=wrong)


def test_refusals(pipe):
    with pytest.raises(InputError, match="blocks are 0 to"):
        draw(pipe, guidance=PerturbedAttentionGuidance(7.0, layers=[99]))
    with pytest.raises(InputError, match=r"interval from 0.8 to 0.2"):
        GuidanceInterval(7.0, 0.8, 0.2)


@pytest.mark.parametrize("shape", [[1, 4, 8, 8], [2, 16, 13, 9], [2, 16, 64, 64]])
def test_deviations_are_those_of_paddle_to_the_last_bit(shape):
    x = 3 * paddle.randn(shape) + 0.5
    assert np.array_equal(_deviation(x).numpy(), x.std(axis=[1, 2, 3], keepdim=True).numpy())
