"""The training loop: it learns, resumes exactly, and refuses what it cannot resume."""

import json

import numpy as np
import paddle
import pytest

from ppsd3.ops import Linear
from ppsd3.training.ema import EMA
from ppsd3.training.trainer import Trainer
from ppsd3.utils.errors import CheckpointFormatError, ConfigError


class Regression:
    """Learns a fixed linear map from noise that depends on the trainer's generator alone."""

    def __init__(self, width=4):
        paddle.seed(1)
        self.layers = {"net": Linear(width, 2)}
        self.truth = np.linspace(-1, 1, 2 * width, dtype="float32").reshape(width, 2)

    def loss(self, rng, step):
        x = rng.standard_normal([16, len(self.truth)]).astype("float32")
        error = self.layers["net"](paddle.to_tensor(x)) - paddle.to_tensor(x @ self.truth)
        return error.square().mean(), {"at": float(step)}


def train(directory, until=None, task=None, **settings):
    settings = {"max_steps": 40, "learning_rate": 0.05, "warmup_steps": 5, "log_every": 10, **settings}
    return Trainer(task or Regression(), str(directory), **settings).run(until)


def weights(trainer):
    return {name: p.numpy() for name, p in trainer.parameters.items()}


def test_learns_and_logs(tmp_path):
    train(tmp_path)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [10, 20, 30, 40]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", until=17)
    resumed = train(tmp_path / "parts")
    assert resumed.step == whole.step == 40
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(value, weights(resumed)[name])
        np.testing.assert_array_equal(whole.ema.shadow[name].numpy(), resumed.ema.shadow[name].numpy())


def test_another_models_state_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(ConfigError, match=r"net.weight"):
        train(tmp_path, task=Regression(width=6))


def test_damaged_state_is_refused(tmp_path):
    trainer = train(tmp_path)
    with open(trainer.state_file, "r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointFormatError, match=r"state.npz"):
        train(tmp_path)


def test_learning_rate_warms_up_and_decays(tmp_path):
    trainer = Trainer(
        Regression(), str(tmp_path), max_steps=100, learning_rate=1.0, warmup_steps=10, final_lr_ratio=0.1
    )
    rates = [trainer.learning_rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_average_is_applied_and_taken_back():
    layer = Linear(2, 2)
    parameters = dict(layer.named_parameters())
    ema = EMA(parameters, decay=0.5, every=1)
    before = layer.weight.numpy().copy()
    layer.weight.set_value(layer.weight + 1.0)
    ema.update(step=1000)
    with ema.applied():
        np.testing.assert_allclose(layer.weight.numpy(), before + 0.5, rtol=1e-6)
    np.testing.assert_allclose(layer.weight.numpy(), before + 1.0, rtol=1e-6)
    ema.copy_to_parameters()
    np.testing.assert_allclose(layer.weight.numpy(), before + 0.5, rtol=1e-6)
