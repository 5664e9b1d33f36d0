"""Networks of any objective in the sampling loop of rectified flows."""

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3 import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline, TorchGenerator
from ppsd3.training.flow_matching import EDM, Cosine, LDMLinear
from ppsd3.training.objective_transformer import ObjectiveTransformer2DModel
from ppsd3.utils.errors import ConfigError, InputError


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def with_objective(pipe, *objective):
    parts = {
        **pipe.components,
        "transformer": ObjectiveTransformer2DModel.from_transformer(pipe.transformer, *objective),
    }
    return StableDiffusion3Pipeline(**parts)


def draw(pipe, **arguments):
    arguments = {"num_inference_steps": 4, "height": tiny.SIDE, "width": tiny.SIDE, **arguments}
    return pipe("a red circle", generator=TorchGenerator(0), output_type="latent", **arguments).images.numpy()


def test_a_rectified_flow_stays_what_it_is(pipe):
    plain = draw(pipe)
    np.testing.assert_allclose(draw(with_objective(pipe, "RectifiedFlow", "velocity")), plain, atol=2e-4)


@pytest.mark.parametrize(
    "objective",
    [
        ("EDM", "F"),
        ("EDM", "epsilon"),
        ("Cosine", "epsilon"),
        ("Cosine", "v_prediction"),
        ("LDMLinear", "v_prediction"),
    ],
)
def test_every_objective_draws_with_guidance_and_is_saved(pipe, objective, tmp_path):
    other = with_objective(pipe, *objective)
    latents = draw(other, guidance_scale=3.0)
    assert np.isfinite(latents).all() and np.abs(latents - draw(pipe, guidance_scale=3.0)).max() > 1e-3
    other.save_pretrained(tmp_path)
    again = StableDiffusion3Pipeline.from_pretrained(tmp_path)
    assert again.transformer.objective == other.transformer.objective
    np.testing.assert_array_equal(draw(again, guidance_scale=3.0), latents)


def loop(model, levels, noise, text):
    """Euler's method from level to level, through the public scheduler."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=list(levels))
    latents = noise
    for timestep in scheduler.timesteps:
        velocity = model(latents, *text, timestep.expand([latents.shape[0]]), return_dict=False)[0]
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents.numpy()


@pytest.fixture(scope="module")
def network():
    """A random transformer, and text for it."""
    paddle.seed(3)
    model = SD3Transformer2DModel(**tiny.TRANSFORMER)
    model.eval()
    rng = np.random.default_rng(0)
    shapes = [2, 7, tiny.TRANSFORMER["joint_attention_dim"]], [2, tiny.TRANSFORMER["pooled_projection_dim"]]
    text = [paddle.to_tensor(rng.standard_normal(shape).astype("float32")) for shape in shapes]
    noise = paddle.to_tensor(rng.standard_normal([2, 4, 16, 16]).astype("float32"))
    return model, text, noise


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("path", [Cosine(), LDMLinear()], ids=["Cosine", "LDMLinear"])
def test_eulers_method_is_ddim(network, path, prediction):
    """A DDIM step (Song et al. 2021, eta 0) predicts x0 and noise and mixes them anew at the next time."""
    model, text, noise = network
    times = np.linspace(0.95, 0.05, 6)
    alpha, sigma = path.alpha(times), path.sigma(times)
    z = (sigma[0] * noise).numpy()
    for i, t in enumerate(times):
        told = paddle.full([2], float(path.timestep(t)))
        out = model(paddle.to_tensor(z.astype("float32")), *text, told, return_dict=False)[0].numpy()
        if prediction == "epsilon":
            x0, eps = (z - sigma[i] * out) / alpha[i], out
        elif prediction == "sample":
            x0, eps = out, (z - alpha[i] * out) / sigma[i]
        else:
            x0, eps = alpha[i] * z - sigma[i] * out, sigma[i] * z + alpha[i] * out
        following = (alpha[i + 1], sigma[i + 1]) if i + 1 < len(times) else (1, 0)
        z = following[0] * x0 + following[1] * eps
    levels = sigma / (alpha + sigma)
    converted = ObjectiveTransformer2DModel.from_transformer(model, type(path).__name__, prediction)
    start = noise * float(levels[0])  # what is left of sigma noise at the scale of a rectified flow
    found = loop(converted, levels, start, text)
    np.testing.assert_allclose(found, z, atol=2e-4 * np.abs(z).max())


def test_eulers_method_is_edms(network):
    """Karras et al. 2022, algorithm 1 without its second order: x moves along (x - D(x)) / sigma."""
    model, text, noise = network
    path = EDM()
    sigmas = np.array([8.0, 3.0, 1.0, 0.4, 0.1])
    times = path.time(-2 * np.log(sigmas))
    x = (sigmas[0] * noise).numpy()
    for i, sigma in enumerate(sigmas):
        told = paddle.full([2], float(path.timestep(times[i])))
        read = paddle.to_tensor((x / np.hypot(sigma, 0.5)).astype("float32"))
        out = model(read, *text, told, return_dict=False)[0].numpy()
        data = 0.25 / (sigma**2 + 0.25) * x + sigma * 0.5 / np.hypot(sigma, 0.5) * out
        following = sigmas[i + 1] if i + 1 < len(sigmas) else 0.0
        x = x + (following - sigma) * (x - data) / sigma
    levels = sigmas / (1 + sigmas)
    converted = ObjectiveTransformer2DModel.from_transformer(model, "EDM", "F")
    found = loop(converted, levels, noise * float(levels[0]), text)
    np.testing.assert_allclose(found, x, atol=2e-4 * np.abs(x).max())


def test_prepared_steps_are_the_plain_ones(network):
    model, text, noise = network
    converted = ObjectiveTransformer2DModel.from_transformer(model, "Cosine", "v_prediction")
    steps = converted.prepare(*text, paddle.to_tensor([700.0, 300.0]))
    for timestep, step in zip((700.0, 300.0), steps):
        plain = converted(noise, *text, paddle.full([2], timestep)).sample
        np.testing.assert_allclose(converted(noise, prepared=step).sample.numpy(), plain.numpy(), atol=1e-4)


def test_refusals(network):
    model, text, noise = network
    with pytest.raises(ConfigError, match=r"trajectory is 'VP'.*LDMLinear"):
        ObjectiveTransformer2DModel.from_transformer(model, "VP", "epsilon")
    with pytest.raises(ConfigError, match=r"trajectory_options of EDM.*beta"):
        ObjectiveTransformer2DModel.from_transformer(model, "EDM", "F", {"beta": 1.0})
    with pytest.raises(ConfigError, match="in_channels is 9"):
        ObjectiveTransformer2DModel("Cosine", "epsilon", **{**tiny.TRANSFORMER, "in_channels": 9})
    converted = ObjectiveTransformer2DModel.from_transformer(model, "Cosine", "epsilon")
    with pytest.raises(InputError, match="timestep"):
        converted(noise, *text)
    with pytest.raises(InputError, match="controlnet"):
        converted(noise, *text, paddle.full([2], 500.0), block_controlnet_hidden_states=[noise])
