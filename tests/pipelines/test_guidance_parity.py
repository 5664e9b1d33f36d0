"""Guidance beside diffusers' guiders and its perturbed-attention pipeline."""

import numpy as np
import paddle
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
guiders = pytest.importorskip("diffusers.guiders")

from helpers import reference

import ppsd3
from ppsd3.pipelines.stable_diffusion_3 import guidance

pytestmark = pytest.mark.parity
STEPS = 10


def velocities(step):
    rng = np.random.RandomState(step)
    return [rng.randn(3, 4, 6, 8).astype(np.float32) for _ in range(3)]  # positive, negative, weakened


def moment(step):
    return guidance.Moment(step, STEPS, 1000.0 - 90 * step)


PAIRS = [
    (guidance.ClassifierFreeGuidance(7.0), guiders.ClassifierFreeGuidance(7.0)),
    (guidance.ClassifierFreeZeroStarGuidance(6.0, zero_init_steps=2), guiders.ClassifierFreeZeroStarGuidance(6.0, 2)),
    (
        guidance.AdaptiveProjectedGuidance(9.0, eta=0.3, norm_threshold=5.0, momentum=-0.5),
        guiders.AdaptiveProjectedGuidance(9.0, -0.5, 5.0, None, 0.3),
    ),
    (guidance.AdaptiveProjectedGuidance(9.0, eta=0.0), guiders.AdaptiveProjectedGuidance(9.0, eta=0.0)),
    (guidance.GuidanceRescale(7.0, 0.6), guiders.ClassifierFreeGuidance(7.0, guidance_rescale=0.6)),
    (guidance.GuidanceInterval(7.0, 0.2, 0.7), guiders.ClassifierFreeGuidance(7.0, start=0.2, stop=0.7)),
    (
        guidance.GuidanceInterval(guidance.GuidanceRescale(guidance.AdaptiveProjectedGuidance(5.0), 0.5), 0.0, 0.5),
        guiders.AdaptiveProjectedGuidance(5.0, guidance_rescale=0.5, stop=0.5),
    ),
    (guidance.SkipLayerGuidance(7.0, [1], 2.0, 0.1, 0.6), guiders.SkipLayerGuidance(7.0, 2.0, 0.1, 0.6, [1])),
    (
        guidance.GuidanceRescale(guidance.SkipLayerGuidance(7.0, [1], 2.0, 0.1, 0.6), 0.4),
        guiders.SkipLayerGuidance(7.0, 2.0, 0.1, 0.6, [1], guidance_rescale=0.4),
    ),
]


@pytest.mark.parametrize("ours,theirs", PAIRS)
def test_guiders(ours, theirs):
    condition = guidance.TextCondition(paddle.zeros([6, 2, 4]), paddle.zeros([6, 4]))
    for step in range(STEPS):
        positive, negative, weak = velocities(step)
        theirs.set_state(step=step, num_inference_steps=STEPS, timestep=torch.tensor(1000.0 - 90 * step))
        if hasattr(theirs, "momentum_buffer") and step == 0 and theirs.adaptive_projected_guidance_momentum:
            theirs.momentum_buffer = guiders.adaptive_projected_guidance.MomentumBuffer(
                theirs.adaptive_projected_guidance_momentum
            )
        expected = theirs.forward(
            *(torch.tensor(v) for v in (positive, negative, weak)[: 3 if "Skip" in type(theirs).__name__ else 2])
        ).pred
        queries = ours.queries(condition, moment(step))
        answers = [
            paddle.to_tensor(
                weak
                if q.skip_layers
                else np.concatenate([negative, positive])
                if len(q.condition.pooled) == 6
                else positive
            )
            for q in queries
        ]
        result = ours.combine(answers, moment(step))
        assert np.abs(result.numpy() - expected.numpy()).max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return reference.write_checkpoint(tmp_path_factory.mktemp("pag") / "checkpoint")


@pytest.mark.parametrize("scale", [5.0, 1.0])
@pytest.mark.parametrize("adaptive", [0.0, 0.006])
@pytest.mark.parametrize("layers", ["blocks.1", ["blocks.0", "blocks.2"]])
def test_pag_pictures(layers, adaptive, scale, checkpoint):
    theirs = reference.load(checkpoint)
    parts = {k: v for k, v in theirs.components.items() if k not in ("image_encoder", "feature_extractor")}
    theirs = diffusers.StableDiffusion3PAGPipeline(**parts, pag_applied_layers=layers)
    theirs.set_progress_bar_config(disable=True)
    ours = ppsd3.StableDiffusion3PAGPipeline.from_pretrained(checkpoint)
    ours.set_progress_bar_config(disable=True)
    ours.set_pag_applied_layers(layers)
    call = {"num_inference_steps": 5, "guidance_scale": scale, "pag_scale": 3.0, "pag_adaptive_scale": adaptive}
    picture = ours("a red circle", generator=ppsd3.TorchGenerator(3), output_type="np", **call).images
    expected = theirs("a red circle", generator=reference.generator(3), output_type="np", **call).images
    assert np.abs(picture - expected).max() * 255 <= 1


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_pag_pictures_from_a_picture(strength, checkpoint):
    parts = reference.load(checkpoint).components
    parts = {k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}
    image = np.random.default_rng(0).random((1, 64, 64, 3), dtype="float32")
    theirs = diffusers.StableDiffusion3PAGImg2ImgPipeline(**parts, pag_applied_layers="blocks.1")
    theirs.set_progress_bar_config(disable=True)
    ours = ppsd3.StableDiffusion3PAGImg2ImgPipeline.from_pretrained(checkpoint)
    ours.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 4, "strength": strength, "pag_scale": 3.0, "image": image, "output_type": "np"}
    picture = ours("a red circle", generator=ppsd3.TorchGenerator(3), **call).images
    expected = theirs("a red circle", generator=reference.generator(3), **call).images
    assert np.abs(picture - expected).max() * 255 <= 1
