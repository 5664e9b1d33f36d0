"""The training loop: it learns, resumes exactly, and refuses what it cannot resume."""

import os

import numpy as np
import pytest
from helpers.regression import Regression, assert_equal, log_of, train, trainer, weights

from ppsd3.ops import Linear
from ppsd3.training.ema import EMA
from ppsd3.training.trainer import TrainingOptions
from ppsd3.utils.errors import CheckpointFormatError, CheckpointNotFoundError, ConfigError, InputError


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lamb", "sgd"])
def test_learns_and_logs(tmp_path, optimizer):
    train(tmp_path, optimizer=optimizer)
    log = log_of(tmp_path)
    assert [entry["step"] for entry in log] == [10, 20, 30, 40]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert log[0]["at"] == np.mean(range(10)) and log[0]["grad_norm"] > 0
    assert len(log[0]["loss_t"]) == 10 and np.mean(log[0]["loss_t"]) == pytest.approx(log[0]["loss"], rel=0.3)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lamb", "sgd"])
def test_resumed_run_equals_uninterrupted_run(tmp_path, optimizer):
    whole = train(tmp_path / "whole", optimizer=optimizer)
    train(tmp_path / "parts", until=17, optimizer=optimizer)  # in the middle of a logged interval
    resumed = train(tmp_path / "parts", optimizer=optimizer)
    assert_equal(whole, resumed)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")


def test_states_are_limited_and_begin_at_step_0(tmp_path):
    names = lambda: sorted(os.listdir(tmp_path / "checkpoints"))  # noqa: E731
    train(tmp_path, until=8, checkpoints_total_limit=None)
    assert names() == ["step-00000000", "step-00000008"]
    train(tmp_path, checkpoints_total_limit=3)
    assert names() == ["step-00000024", "step-00000032", "step-00000040"]


def test_what_was_logged_after_the_state_is_logged_once(tmp_path):
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", until=23)
    resumed = train(tmp_path / "parts", resume_from="step-00000016")
    assert_equal(whole, resumed)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")


def test_a_line_that_was_cut_off_goes(tmp_path):
    train(tmp_path, until=20)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 30, "lo')
    train(tmp_path)
    assert [entry["step"] for entry in log_of(tmp_path)] == [10, 20, 30, 40]


def test_several_batches_are_one_step(tmp_path):
    """The mean gradient of four batches, by hand."""
    task = Regression()
    one = trainer(tmp_path, task=task, batches_per_step=4, optimizer="sgd", betas=(0.0, 0.0), weight_decay=0.0,
                  warmup_steps=0, max_grad_norm=1e9, lr_schedule="constant")  # fmt: skip
    before = {name: p.numpy().copy() for name, p in one.parameters.items()}
    one.run(until=1)
    after = weights(one)
    for name, p in one.parameters.items():
        p.set_value(before[name])
    for batch in range(4):
        rng = np.random.default_rng([0, batch])
        rng.integers(2**31)  # what seeds Paddle
        (task.loss(rng, batch)[0] / 4).backward()
    for name, p in one.parameters.items():
        np.testing.assert_allclose(after[name], before[name] - 0.05 * p.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_another_models_state_is_refused(tmp_path):
    train(tmp_path, until=8)
    with pytest.raises(ConfigError, match=r"task.width is 6 and was 4"):
        train(tmp_path, task=Regression(width=6))
    with pytest.raises(ConfigError, match=r"shape \[2, 4\] for net.weight.*\[2, 6\]"):
        train(tmp_path, task=Regression(width=6), override=True)


@pytest.mark.parametrize(
    "setting",
    [
        {"learning_rate": 0.01},
        {"seed": 3},
        {"lr_schedule": "linear"},
        {"max_steps": 50},
        {"ema_decay": 0.9},
        {"weight_decay": 0.0},
        {"batches_per_step": 2},
        {"optimizer": "sgd"},
    ],
)
def test_other_settings_are_refused_unless_asked_for(tmp_path, setting):
    train(tmp_path, until=8)
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError, match=rf"{name} is {value!r} and was .*--override"):
        train(tmp_path, **setting)
    if name != "optimizer":
        assert train(tmp_path, override=True, **setting).step == setting.get("max_steps", 40)


def test_settings_that_leave_the_numbers_alone_may_change(tmp_path):
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", until=8)
    assert_equal(whole, train(tmp_path / "parts", save_every=5, log_every=3, checkpoints_total_limit=1))


def test_a_constant_schedule_may_go_on(tmp_path):
    train(tmp_path, lr_schedule="constant", max_steps=20)
    assert train(tmp_path, lr_schedule="constant", max_steps=30).step == 30


def test_damaged_or_missing_states_are_refused(tmp_path):
    train(tmp_path)
    last = tmp_path / "checkpoints" / "step-00000040"
    with open(last / "parameters.safetensors", "r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointFormatError, match=r"parameters.safetensors"):
        train(tmp_path)
    (last / "state.json").write_text("{")
    with pytest.raises(CheckpointFormatError, match=r"state.json"):
        train(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"step-7.*step-00000032, step-00000040"):
        train(tmp_path, resume_from="step-7")


def test_validation_sees_the_averages_and_is_logged(tmp_path):
    task = Regression()
    seen = []

    def validate(step):
        seen.append((step, task.layers["net"].weight.numpy().copy(), task.layers["net"].training))
        return {"score": step / 10}

    done = train(tmp_path, task=task, validate=validate, validate_every=20)
    assert [step for step, _, _ in seen] == [20, 40] and not any(training for _, _, training in seen)
    np.testing.assert_array_equal(seen[-1][1], done.ema.shadow["net.weight"].numpy())
    assert [e["score"] for e in log_of(tmp_path) if "score" in e] == [2.0, 4.0]
    assert_equal(done, train(tmp_path / "without"))  # and changes nothing


def test_learning_rate_warms_up_and_decays():
    options = TrainingOptions(max_steps=100, learning_rate=1.0, warmup_steps=10, final_lr_ratio=0.1)
    rates = [options.learning_rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    constant = TrainingOptions(max_steps=100, learning_rate=1.0, warmup_steps=0, lr_schedule="constant")
    assert {constant.learning_rate_at(step) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    "setting, named",
    [
        ({"max_steps": 0}, "`max_steps` is 0"),
        ({"learning_rate": 0.0}, r"`learning_rate` is 0\.0"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan"),
        ({"ema_decay": 1.0}, r"`ema_decay` is 1\.0"),
        ({"lr_schedule": "cosin"}, "'cosin'.*cosine"),
        ({"optimizer": "prodigy"}, "'prodigy': no kept library"),
        ({"optimizer": "adan"}, "'adan' is unknown.*adafactor"),
        ({"mixed_precision": "bf16"}, r"needs a GPU.*float32_matmul_precision"),
        ({"mixed_precision": "tf32"}, "'tf32' is unknown"),
        ({"checkpoints_total_limit": 0}, "`checkpoints_total_limit` is 0"),
        ({"report_to": "wandb"}, r"'wandb'.*visualdl"),
    ],
)
def test_wrong_options(tmp_path, setting, named):
    with pytest.raises(InputError, match=named):
        trainer(tmp_path, **setting)


def test_nothing_to_train(tmp_path):
    task = Regression()
    for parameter in task.layers["net"].parameters():
        parameter.stop_gradient = True
    with pytest.raises(InputError, match="net has gradients"):
        trainer(tmp_path, task=task)


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
