"""What a run will need, counted and measured, and its rehearsal, which leaves nothing behind."""

import io
import os
import pathlib
import re
import sys

import numpy as np
import pytest
from helpers.training_runs import configuration

from ppsd3.cli.main import main
from ppsd3.training import estimate as estimates
from ppsd3.training.configuration import read_configuration
from ppsd3.training.estimate import Memory, estimate_training, expected_memory, memory_table
from ppsd3.training.log import TrainingLog
from ppsd3.training.plots import plot_run, smoothed
from ppsd3.training.published import PUBLISHED
from ppsd3.training.rehearsal import Rehearsal, dry_run
from ppsd3.utils.errors import CheckpointNotFoundError, ConfigError, InputError, PPSD3Error

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def published(*settings, model="SD3-medium", **options):
    chosen = configuration(model, "x", "x", "data.resolution=1024", "training.ema_decay=null", *settings)
    return expected_memory(chosen, PUBLISHED[model], **options)


def test_kinds_of_the_published_models():
    """Numbers of weights as published: 2.03, 2.24 (without the table of positions) and 8.06 billion."""
    for model, billions in (("SD3-medium", 2.03), ("SD3.5-medium", 2.24), ("SD3.5-large", 8.06)):
        assert published("method=full", model=model).masters == pytest.approx(4e9 * billions, rel=0.01)
    full = published("method=full")
    assert (full.gradients, full.optimizer, full.ema) == (full.masters, 2 * full.masters, 0)
    assert published("method=full", "training.ema_decay=0.99").ema == full.masters
    assert published("method=full", "training.optimizer=sgd").optimizer == full.masters
    adafactor = published("method=full", "training.optimizer=adafactor").optimizer
    assert full.masters < adafactor < 1.01 * full.masters
    lora = published("lora.rank=16")
    assert lora.masters == 24 * 4 * 4 * 2 * 1536 * 16  # Q, K, V and the output in each of 24 blocks
    assert published("lora.rank=16", "weights=int8").weights < published("weights=bfloat16").weights < lora.weights
    assert published("weights=int8").while_encoding == pytest.approx(published().while_encoding, rel=1e-3)
    assert published("method=lora", "lora.kind=dora") is None


def test_activations_grow_as_they_must():
    base = published()
    assert published("data.batch_size=2").activations == 2 * base.activations
    assert published("data.class_prompt=a dog").activations == 2 * base.activations
    assert published("training.batches_per_step=8").activations == base.activations
    assert published("gradient_checkpointing=true").activations < base.activations / 5
    assert published(mixed=True).activations < base.activations
    assert published("lora.train_text_encoders=true").activations > base.activations
    assert published("method=controlnet").activations > 1.4 * base.activations
    assert published("validation.prompts=[x]", "training.validate_every=1").pictures > base.pictures


def test_the_peak_is_of_the_larger_phase():
    memory = Memory(1, 2, 4, 8, 16, activations=32, caches=64, before_training=1000, pictures=40)
    assert (memory.while_encoding, memory.while_training, memory.peak) == (1003, 135, 1003)
    lines = list(Memory(10**9, 2, 0, 0, 0, 0).lines())
    assert lines[0].split() == ["weights", "1.0", "GB"] and not any("gradients" in line for line in lines)


def test_the_table_of_the_docs_is_counted():
    rows = memory_table()
    assert len(rows) == 9
    for page in ("guide/training.md", "zh/guide/training.md"):
        text = (DOCS / page).read_text(encoding="utf-8")
        assert [row for row in rows if row not in text] == []


def test_command_counts_a_published_model(capsys, tmp_path):
    arguments = ["train", "--model", "SD3.5-large", "--data", "x", "--output", str(tmp_path / "none"), "--estimate"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "counted from the configurations" in out and "measured" not in out and not (tmp_path / "none").exists()


SETTINGS = "validation.prompts=[a circle]", "training.validate_every=2", "training.ema_decay=0.9", "method=full"


def check_measured(measured, expected):
    assert measured.masters == expected.masters == measured.ema
    assert measured.weights == pytest.approx(expected.weights, rel=0.01)
    assert measured.optimizer == pytest.approx(2 * measured.masters, rel=0.01)
    assert measured.before_training == expected.before_training > 0


def test_measured_kinds_are_the_counted_ones(model, data, tmp_path, monkeypatch):
    chosen = configuration(model, data, tmp_path / "none", *SETTINGS)
    answer = estimates.measure(chosen)
    (expected,) = {estimate_training(chosen, measure=False).expected}
    check_measured(Memory(**answer["memory"]), expected)
    assert answer["seconds_per_step"] > 0 and answer["seconds_before"] > 0 and not (tmp_path / "none").exists()
    monkeypatch.setattr(estimates, "available_memory", lambda: 10**5)
    with pytest.raises(InputError, match="cannot be measured"):
        estimate_training(chosen)


@pytest.mark.machine
def test_measured_in_a_process_of_its_own(model, data, tmp_path):
    """And so its peak; errors come back as what they are."""
    found = estimate_training(configuration(model, data, tmp_path / "none", *SETTINGS))
    check_measured(found.measured, found.expected)
    assert found.measured.activations == pytest.approx(found.expected.activations, rel=0.25)
    assert found.measured.peak > found.expected.peak
    assert 0 < found.seconds_per_step < 60 and found.steps == 4
    assert found.seconds == pytest.approx(found.seconds_before + 4 * found.seconds_per_step)
    assert not (tmp_path / "none").exists() and "time per step" in "\n".join(found.lines())
    with pytest.raises(PPSD3Error, match="nothing"):
        estimate_training(configuration(model, str(tmp_path / "nothing"), tmp_path / "none"))


def test_dry_run(model, data, tmp_path, capsys):
    """Everything once, also what would be drawn first; and not a file more than before."""
    folder = tmp_path / "out"
    arguments = ["train", "--model", model, "--data", data, "--output", str(folder), "--dry-run"]
    for setting in (
        "data.resolution=64",
        "data.max_aspect=1.5",
        "data.batch_size=3",
        "data.class_prompt=a shape",
        "text.max_sequence_length=5",
        "training.max_steps=10",
        "training.save_every=4",
        "validation.prompts=[a circle]",
        "validation.num_inference_steps=1",
        "training.validate_every=5",
    ):
        arguments += ["--set", setting]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "method lora: 3,072 numbers in 24 tensors" in out
    assert "4 samples, 7 captions to encode; buckets 64x64 (4)" in out
    assert "class: 0 pictures are there, 100 would be drawn" in out
    assert "10 of 1 x 3 samples, 5.0 epochs of 2 batches" in out
    assert "4 states of" in out and "2 stay" in out and "validation/: 2 pictures" in out
    assert re.search(r"pytorch_lora_weights.safetensors: \d+\.\d kB", out)
    assert not folder.exists()


def test_a_dry_run_leaves_a_run_as_it_is(model, data, tmp_path):
    chosen = configuration(model, data, tmp_path, "method=controlnet", "data.control_column=edges")
    (tmp_path / "checkpoints" / "step-00000002").mkdir(parents=True)
    (tmp_path / "log.jsonl").write_text("{}\n")
    lines = dry_run(chosen)
    assert any("has a state of step 2" in line for line in lines) and any("controlnet:" in line for line in lines)
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "log.jsonl"]
    assert os.listdir(tmp_path / "checkpoints" / "step-00000002") == []


def test_a_rehearsal_has_the_first_batch_of_the_run(model, data, tmp_path):
    run = Rehearsal(configuration(model, data, tmp_path / "a", "data.batch_size=2"), str(tmp_path / "b"))
    wanted = {run.samples[i].key for i in run.plan(0)}
    assert {sample.key for sample in run.batches.samples} == wanted and len(run.samples) == 4
    run.trainer.log.begin(0)
    assert len(run.train(2)) == 2 and run.trainer.step == 2


@pytest.mark.machine
def test_a_method_without_text(model, data, tmp_path):
    """Nothing is encoded that it does not read."""
    settings = [f"model={model}", f"output={tmp_path / 'none'}", f"data.path={data}", "data.resolution=64"]
    chosen = read_configuration(None, [*settings, "method=vae", "training.validate_every=2"])
    assert "data: 4 samples; buckets 64x64 (4)" in dry_run(chosen)
    answer = estimates.measure(chosen)
    assert answer["seconds_before"] == 0 < answer["memory"]["masters"]
    with pytest.raises(ConfigError, match="nothing is known"):
        estimate_training(chosen, measure=False)
    assert not (tmp_path / "none").exists()


def test_ranks_are_refused(model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    chosen = configuration(model, data, tmp_path)
    for call in (dry_run, estimate_training):
        with pytest.raises(InputError, match="one process"):
            call(chosen)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "kind, silent, shows", [(Terminal, False, True), (io.StringIO, False, False), (Terminal, True, False)]
)
def test_progress_bar(tmp_path, monkeypatch, kind, silent, shows):
    """On a terminal, of the first rank."""
    screen = kind()
    monkeypatch.setattr(sys, "stderr", screen)
    log = TrainingLog(str(tmp_path), 2, 4, silent=silent)
    log.begin(1)
    with log:
        for step in (2, 3, 4):
            log.add(step, 1e-4, {"loss": 0.25, "grad_norm": 1.0})
    text = screen.getvalue()
    assert ("4/4" in text and "loss=0.25" in text and "\r" in text) == shows
    assert ("step 4/4" in text) == (not shows and not silent)


def test_smoothing_begins_with_the_first_value():
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx([3, 3, 3])
    values = smoothed(list(np.linspace(0, 1, 50)), 0.5)
    assert values == sorted(values) and values[-1] < 1


def test_plots_that_cannot_be(tmp_path, monkeypatch, capsys):
    with pytest.raises(CheckpointNotFoundError, match=r"log\.jsonl does not exist"):
        plot_run(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "score": 1}\n')
    with pytest.raises(InputError, match="no loss yet"):
        plot_run(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 1, "lr": 1}\n')
    with pytest.raises(InputError, match=r"\.svg or \.pdf"):
        plot_run(tmp_path, tmp_path / "x.gif")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["train", "--plot", str(tmp_path)]) == 2
    assert "ppsd3[train]" in capsys.readouterr().err
