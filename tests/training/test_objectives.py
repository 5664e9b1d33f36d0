"""What is trained on: the flow, its times, the text that is withheld, the pixels that count."""

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3.models import SD3ControlNetModel
from ppsd3.training.autoencoder import AutoencoderTask, local_contrast, to_model_range
from ppsd3.training.controlnet import ControlNetTask
from ppsd3.training.flow_matching import RectifiedFlow
from ppsd3.training.text_to_image import Batch, TextDropout, TextToImageTask
from ppsd3.training.timestep_sampling import sample_timesteps
from ppsd3.utils.errors import InputError


def test_flow_runs_from_data_to_noise_at_its_target_velocity():
    flow, rng = RectifiedFlow(), np.random.default_rng(0)
    x0, noise = (paddle.to_tensor(rng.standard_normal([2, 3, 4, 4]).astype("float32")) for _ in range(2))
    at = {t: flow.interpolate(x0, noise, paddle.full([2], t)) for t in (0.0, 0.25, 1.0)}
    np.testing.assert_array_equal(at[0.0].numpy(), x0.numpy())
    np.testing.assert_array_equal(at[1.0].numpy(), noise.numpy())
    np.testing.assert_allclose((at[0.25] - x0).numpy(), 0.25 * flow.target(x0, noise).numpy(), atol=1e-6)


# Shares below 1/4 worked out by hand: Phi(-ln 3) = 0.136; f_mode(u) = 1/4 at u = 0.867; 2/pi atan(1/3) = 0.205.
@pytest.mark.parametrize(
    "density, below_quarter", [("uniform", 0.25), ("logit_normal", 0.136), ("mode", 0.133), ("cosmap", 0.205)]
)
def test_densities(density, below_quarter):
    t = sample_timesteps(np.random.default_rng(0), 200000, density)
    assert t.dtype == np.float32 and 0 <= t.min() and t.max() <= 1
    assert np.median(t) == pytest.approx(0.5, abs=0.01)
    assert (t < 0.25).mean() == pytest.approx(below_quarter, abs=0.01)


def test_unknown_density():
    with pytest.raises(InputError, match=r"lognormal.*logit_normal"):
        sample_timesteps(np.random.default_rng(0), 2, "lognormal")


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
