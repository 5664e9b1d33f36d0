"""A task of eight numbers, whose runs take a fraction of a second."""

import numpy as np
import paddle

from ppsd3.ops import Linear
from ppsd3.training.log import read_log
from ppsd3.training.trainer import Trainer, TrainingOptions


class Regression:
    """Learns a fixed linear map from noise that depends on the trainer's generator alone."""

    def __init__(self, width=4, bad_batches=()):
        paddle.seed(1)
        self.layers = {"net": Linear(width, 2)}
        self.truth = np.linspace(-1, 1, 2 * width, dtype="float32").reshape(width, 2)
        self.configuration = {"width": width}
        self.bad_batches = bad_batches

    def loss(self, rng, batch):
        x = rng.standard_normal([16, len(self.truth)]).astype("float32")
        error = self.layers["net"](paddle.to_tensor(x)) - paddle.to_tensor(x @ self.truth)
        errors = error.square().mean(axis=1)
        scale = float("nan") if batch in self.bad_batches else 1.0
        return errors.mean() * scale, {"at": float(batch), "t": rng.random(16), "errors": errors.numpy()}


DEFAULTS = {"max_steps": 40, "learning_rate": 0.05, "warmup_steps": 5, "log_every": 10, "save_every": 8}


def trainer(directory, task=None, resume_from="latest", override=False, validate=None, **settings):
    options = TrainingOptions(**{**DEFAULTS, **settings})
    return Trainer(task or Regression(), str(directory), options, validate, resume_from, override)


def train(directory, until=None, **settings):
    return trainer(directory, **settings).run(until)


def weights(trainer):
    return {name: p.numpy() for name, p in trainer.parameters.items()}


def log_of(directory):
    """The log but for its speeds."""
    return [{k: v for k, v in e.items() if k != "steps_per_second"} for e in read_log(str(directory / "log.jsonl"))]


def assert_equal(one, other):
    assert one.step == other.step
    for name, value in weights(one).items():
        np.testing.assert_array_equal(value, weights(other)[name])
    for name, value in one.optimizer.state().items():
        np.testing.assert_array_equal(value.numpy(), other.optimizer.state()[name].numpy())
    if one.ema is not None:
        for name, value in one.ema.shadow.items():
            np.testing.assert_array_equal(value.numpy(), other.ema.shadow[name].numpy())
