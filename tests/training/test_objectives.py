"""What is trained on: the flow, its times, the text that is withheld, the pixels that count."""

import os

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3.models import SD3ControlNetModel
from ppsd3.training.autoencoder import AutoencoderTask, local_contrast, to_model_range
from ppsd3.training.caches import LatentCache
from ppsd3.training.controlnet import ControlNetTask
from ppsd3.training.flow_matching import EDM, Cosine, LDMLinear, Objective, RectifiedFlow
from ppsd3.training.text_to_image import Batch, TextToImageTask
from ppsd3.training.texts import CachedTexts, EncodedTexts, TextDropout
from ppsd3.utils.errors import InputError


@pytest.mark.parametrize("path", [RectifiedFlow(), EDM(), Cosine(), LDMLinear()], ids=lambda path: type(path).__name__)
def test_the_loss_is_that_of_the_objective_by_hand(pipe, path):
    training, batch = task(pipe, encoder=0.0)
    training.objective, training.weight = Objective(path, "epsilon"), "sigma_sqrt"
    t = np.array([0.2, 0.5, 0.9])
    noise = np.random.default_rng(0).standard_normal(batch.latents.shape).astype("float32")
    condition = condition_of(training, batch)
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
        TextToImageTask(pipe.transformer, EncodedTexts(pipe._text_encoders()), lambda rng, step: None, weight="snr")


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def task(pipe, **dropout):
    size = pipe.transformer.config.sample_size
    latents = np.ones([3, pipe.transformer.config.in_channels, size, size], "float32")
    batch = Batch(latents, ["a circle", "two rings", "a cross"], clip_length=9, t5_length=5)
    texts = EncodedTexts(pipe._text_encoders(), TextDropout(**dropout))
    return TextToImageTask(pipe.transformer, texts, lambda rng, step: batch), batch


def condition_of(training, batch):
    return training.texts.condition(batch.prompts, np.random.default_rng(0), batch.clip_length, batch.t5_length)


def test_nothing_withheld_is_the_pipelines_condition(pipe):
    training, batch = task(pipe, encoder=0.0)
    condition = condition_of(training, batch)
    assert condition.embeds.shape[:2] == [3, 9 + 5]
    assert all((np.abs(condition.embeds[:, i].numpy()).max(-1) > 0).all() for i in range(14))


def test_everything_withheld_is_zeros(pipe):
    training, batch = task(pipe, encoder=1.0)
    condition = condition_of(training, batch)
    assert not condition.embeds.numpy().any() and not condition.pooled.numpy().any()


def test_withheld_captions_are_empty_prompts(pipe):
    training, batch = task(pipe, encoder=0.0, caption=1.0)
    condition = condition_of(training, batch).embeds.numpy()
    np.testing.assert_allclose(condition[0], condition[1], atol=1e-6)


PROMPTS = ["a circle", "two rings", "a circle"]


def test_cached_texts_are_the_encoded_ones_and_need_no_towers(pipe, tmp_path):
    encoders = pipe._text_encoders()
    wanted = EncodedTexts(encoders).condition(PROMPTS, np.random.default_rng(0), 77, 5)
    cached = CachedTexts(encoders, directory=str(tmp_path))
    cached.prepare(PROMPTS, 77, 5)
    assert len(os.listdir(tmp_path)) == 3  # "" too
    assert cached._frozen is None and cached.encoders.text_encoder_3 is None
    again = CachedTexts(encoders, directory=str(tmp_path))
    again._frozen = None  # all is on disk
    for texts in (cached, again):
        found = texts.condition(PROMPTS, np.random.default_rng(0), 77, 5)
        np.testing.assert_allclose(found.embeds.numpy(), wanted.embeds.numpy(), atol=1e-5)
        np.testing.assert_allclose(found.pooled.numpy(), wanted.pooled.numpy(), atol=1e-5)


def test_a_damaged_cache_file_is_made_anew(pipe, tmp_path):
    first = CachedTexts(pipe._text_encoders(), directory=str(tmp_path))
    first.prepare(PROMPTS, 77, 5)
    for name in os.listdir(tmp_path):
        with open(tmp_path / name, "r+b") as file:
            file.truncate(20)
    again = CachedTexts(pipe._text_encoders(), directory=str(tmp_path))
    found, wanted = (t.condition(PROMPTS, np.random.default_rng(0), 77, 5).embeds for t in (again, first))
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), atol=1e-5)


def test_trained_towers_get_gradients_and_the_others_are_cached(pipe):
    encoders = pipe._text_encoders()
    texts = CachedTexts(encoders, trained=["text_encoder", "text_encoder_2"])
    texts.prepare(PROMPTS, 77, 5)
    assert texts.encoders.text_encoder_3 is None
    found = texts.condition(PROMPTS, np.random.default_rng(0), 77, 5)
    wanted = EncodedTexts(encoders).condition(PROMPTS, np.random.default_rng(0), 77, 5)
    np.testing.assert_allclose(found.embeds.numpy(), wanted.embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.pooled.numpy(), wanted.pooled.numpy(), atol=1e-5)
    (found.embeds.square().sum() + found.pooled.square().sum()).backward()
    for tower in (encoders.text_encoder, encoders.text_encoder_2):
        assert tower.text_model.encoder.layers[0].mlp.fc1.weight.grad is not None
        tower.clear_gradients()


def test_cached_texts_drop_as_encoded_ones_do(pipe):
    dropout = TextDropout(encoder=0.5, caption=0.3)
    plain, cached = (kind(pipe._text_encoders(), dropout) for kind in (EncodedTexts, CachedTexts))
    for seed in range(4):
        wanted, found = (t.condition(PROMPTS, np.random.default_rng(seed), 77, 5) for t in (plain, cached))
        np.testing.assert_allclose(found.embeds.numpy(), wanted.embeds.numpy(), atol=1e-5)
        np.testing.assert_allclose(found.pooled.numpy(), wanted.pooled.numpy(), atol=1e-5)


def test_cached_latents_are_sampled_as_diffusers_samples(pipe, tmp_path):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, [64, 64, 3], dtype=np.uint8)
    asked = []

    def pixels():
        asked.append(1)
        return picture

    for cache in (LatentCache(pipe.vae, str(tmp_path)), LatentCache(pipe.vae, str(tmp_path))):
        mean, std = cache.posterior("one 64x64", pixels)
    assert len(asked) == 1
    posterior = pipe.vae.encode(to_model_range(picture[None])).latent_dist
    np.testing.assert_allclose(mean, posterior.mean[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(std, posterior.std[0].numpy(), atol=1e-5)
    # the shift that is forgotten elsewhere
    config = pipe.vae.config
    np.testing.assert_allclose(cache.scale(mean), (mean - config.shift_factor) * config.scaling_factor, rtol=1e-6)
    assert config.shift_factor != 0


def test_rows_have_weights(pipe):
    training, batch = task(pipe, encoder=0.0)
    whole = float(training.loss(np.random.default_rng(0), 0)[0])
    batch.weights = np.array([0.5, 0.5, 0.5])
    assert float(training.loss(np.random.default_rng(0), 0)[0]) == pytest.approx(whole / 2, rel=1e-6)


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
    learning = ControlNetTask(net, transformer, training.texts, training.batches)
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
        TextToImageTask(transformer, training.texts, training.batches).loss(np.random.default_rng(0), 0)[0]
    )
    assert losses[0] == pytest.approx(pipe_loss, rel=1e-5)  # a fresh ControlNet changes nothing
    assert losses[-1] < 0.8 * losses[0]
    assert all(np.array_equal(before[name], tensor.numpy()) for name, tensor in transformer.state_dict().items())
