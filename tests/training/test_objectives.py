"""What is trained on: the flow, its times, the text that is withheld, the pixels that count."""

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3.models import SD3ControlNetModel
from ppsd3.training.autoencoder import AutoencoderTask, local_contrast, to_model_range
from ppsd3.training.controlnet import ControlNetTask
from ppsd3.training.flow_matching import EDM, Cosine, LDMLinear, Objective, RectifiedFlow
from ppsd3.training.text_to_image import Batch, TextDropout, TextToImageTask
from ppsd3.utils.errors import InputError


@pytest.mark.parametrize("path", [RectifiedFlow(), EDM(), Cosine(), LDMLinear()], ids=lambda path: type(path).__name__)
def test_the_loss_is_that_of_the_objective_by_hand(pipe, path):
    training, batch = task(pipe, encoder=0.0)
    training.objective, training.weight = Objective(path, "epsilon"), "sigma_sqrt"
    t = np.array([0.2, 0.5, 0.9])
    noise = np.random.default_rng(0).standard_normal(batch.latents.shape).astype("float32")
    condition = training.condition(batch, np.random.default_rng(0))
    found = training.errors(batch, paddle.to_tensor(noise), t, condition).numpy()
    alpha, sigma, scale = (
        (f(t)[:, None, None, None]).astype("float32") for f in (path.alpha, path.sigma, path.input_scale)
    )
    read = paddle.to_tensor(scale * (alpha * batch.latents + sigma * noise))
    told = paddle.to_tensor(path.timestep(t).astype("float32"))
    answer = pipe.transformer(read, condition.embeds, condition.pooled, told).sample.numpy()
    np.testing.assert_allclose(found, ((answer - noise) ** 2).mean((1, 2, 3)), rtol=1e-5)
    # the whole loss, from the same generator
    rng = np.random.default_rng(7)
    noise = paddle.to_tensor(rng.standard_normal(batch.latents.shape, dtype=np.float32))
    t = training.density.sample(rng, 3)
    errors = training.errors(batch, noise, t, condition).numpy()
    loss, metrics = training.loss(np.random.default_rng(7), 0)
    assert float(loss) == pytest.approx((errors / t**2).mean(), rel=1e-5)
    np.testing.assert_array_equal(metrics["t"], t)
    np.testing.assert_array_equal(metrics["errors"], errors)


def test_an_unknown_weight_is_refused_before_training(pipe):
    with pytest.raises(InputError, match=r"'snr'.*'min_snr'"):
        TextToImageTask(pipe.transformer, pipe._text_encoders(), lambda rng, step: None, weight="snr")


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def task(pipe, **dropout):
    size = pipe.transformer.config.sample_size
    latents = np.ones([3, pipe.transformer.config.in_channels, size, size], "float32")
    batch = Batch(latents, ["a circle", "two rings", "a cross"], clip_length=9, t5_length=5)
    encoders = pipe._text_encoders()
    return TextToImageTask(pipe.transformer, encoders, lambda rng, step: batch, TextDropout(**dropout)), batch


def test_nothing_withheld_is_the_pipelines_condition(pipe):
    training, batch = task(pipe, encoder=0.0)
    condition = training.condition(batch, np.random.default_rng(0))
    assert condition.embeds.shape[:2] == [3, 9 + 5]
    assert all((np.abs(condition.embeds[:, i].numpy()).max(-1) > 0).all() for i in range(14))


def test_everything_withheld_is_zeros(pipe):
    training, batch = task(pipe, encoder=1.0)
    condition = training.condition(batch, np.random.default_rng(0))
    assert not condition.embeds.numpy().any() and not condition.pooled.numpy().any()


def test_withheld_captions_are_empty_prompts(pipe):
    training, batch = task(pipe, encoder=0.0, caption=1.0)
    condition = training.condition(batch, np.random.default_rng(0)).embeds.numpy()
    np.testing.assert_allclose(condition[0], condition[1], atol=1e-6)


def test_loss_reaches_every_parameter_of_the_transformer(pipe):
    training, _ = task(pipe, encoder=0.0)
    loss, _ = training.loss(np.random.default_rng(0), 0)
    loss.backward()
    missing = {name for name, p in pipe.transformer.named_parameters() if p.grad is None}
    pipe.transformer.clear_gradients()
    last = f"transformer_blocks.{len(pipe.transformer.transformer_blocks) - 1}.attn.add_q_proj"
    # the checkpoint format has them, but what text would ask in the last block changes nothing
    assert float(loss) > 0 and missing == {f"{last}.weight", f"{last}.bias"}


def test_contrast_marks_edges_alone():
    pictures = np.zeros([1, 8, 8, 3], np.uint8)
    pictures[:, :, 4:] = 255
    contrast = local_contrast(to_model_range(pictures)).numpy()[0, 0]
    np.testing.assert_allclose(contrast[0], [0, 0, 0, 1, 1, 0, 0, 0], atol=1e-6)


def test_edges_weigh_more(pipe):
    def pictures(rng, batch):
        return np.repeat(np.tri(64, dtype=np.uint8)[None, :, :, None] * 255, 3, axis=3)

    plain, weighted = (
        AutoencoderTask(pipe.vae, pictures, batch=1, edge_weight=w).loss(np.random.default_rng(0), 0)[1]
        for w in (0.0, 5.0)
    )
    assert weighted["l1"] > plain["l1"] and weighted["kl"] == pytest.approx(plain["kl"])


def test_a_controlnet_learns_and_the_transformer_rests(pipe):
    transformer = tiny.make_components()["transformer"]
    training, batch = task(pipe, encoder=0.0)
    batch.controls = np.ones_like(batch.latents)
    net = SD3ControlNetModel.from_transformer(transformer, num_layers=2)
    learning = ControlNetTask(net, transformer, training.encoders, training.batches, dropout=TextDropout(encoder=0.0))
    assert list(learning.layers) == ["controlnet"]
    before = {name: tensor.numpy().copy() for name, tensor in transformer.state_dict().items()}
    optimizer = paddle.optimizer.Adam(3e-3, parameters=net.parameters())
    losses = []
    for _ in range(20):
        loss, _ = learning.loss(np.random.default_rng(0), 0)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    pipe_loss = float(
        TextToImageTask(transformer, training.encoders, training.batches, TextDropout(encoder=0.0)).loss(
            np.random.default_rng(0), 0
        )[0]
    )
    assert losses[0] == pytest.approx(pipe_loss, rel=1e-5)  # a fresh ControlNet changes nothing
    assert losses[-1] < 0.8 * losses[0]
    assert all(np.array_equal(before[name], tensor.numpy()) for name, tensor in transformer.state_dict().items())
