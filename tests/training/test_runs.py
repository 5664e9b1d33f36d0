"""`ppsd3 train`: configurations, and whole runs of each method on a tiny model."""

import os

import numpy as np
import pytest
from helpers.training_runs import configuration, draw
from PIL import Image

from ppsd3 import SD3ControlNetModel, SD3Transformer2DModel, StableDiffusion3Pipeline, TorchGenerator
from ppsd3.cli.main import main
from ppsd3.training.configuration import TrainConfiguration, list_settings, read_configuration
from ppsd3.training.option_names import CONVERTED, SETTINGS, settings_of
from ppsd3.training.runs import TrainingRun
from ppsd3.utils.errors import ConfigError, InputError


@pytest.mark.parametrize("settings", [(), ("lora.train_text_encoders=true",), ("lora.kind=dora", "lora.rank=2")])
def test_lora(model, data, tmp_path, settings):
    run = TrainingRun(configuration(model, data, tmp_path, *settings))
    assert run.pipe.text_encoder_3 is None  # T5 is not kept in memory while training
    path = run.run()
    assert path == str(tmp_path / "pytorch_lora_weights.safetensors")
    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    plain = draw(pipe)
    pipe.load_lora_weights(str(tmp_path))
    assert np.abs(draw(pipe) - plain).max() > 1e-4
    towers = [name for name in run.task.layers if name.startswith("text")]
    assert towers == (["text_encoder", "text_encoder_2"] if "lora.train_text_encoders=true" in settings else [])
    assert bool(pipe.text_encoder.active_adapters()) == bool(towers)


def test_full(model, data, tmp_path):
    checkpointed = TrainingRun(
        configuration(model, data, tmp_path, "method=full", "gradient_checkpointing=true", "training.ema_decay=0.9")
    )
    path = checkpointed.run()
    trained, before = (SD3Transformer2DModel.from_pretrained(p) for p in (path, os.path.join(model, "transformer")))
    moved = [np.abs(a.numpy() - b.numpy()).max() for a, b in zip(trained.parameters(), before.parameters())]
    assert 0 < max(moved) < 1e-2


def test_controlnet(model, data, tmp_path):
    settings = ("method=controlnet", "data.control_column=edges", "controlnet.num_layers=1")
    validation = ("validation.prompts=[a circle]", "validation.num_inference_steps=1", "training.validate_every=4")
    path = TrainingRun(configuration(model, data, tmp_path / "one", *settings, *validation)).run()
    assert Image.open(tmp_path / "one" / "validation" / "step-00000004.png").size == (64, 64)
    net = SD3ControlNetModel.from_pretrained(path)
    assert len(net.transformer_blocks) == 1
    assert max(np.abs(layer.weight.numpy()).max() for layer in net.controlnet_blocks) > 0
    again = TrainingRun(configuration(model, data, tmp_path / "two", *settings, f"controlnet.from_pretrained={path}"))
    np.testing.assert_array_equal(
        again.method.controlnet.controlnet_blocks[0].weight.numpy(), net.controlnet_blocks[0].weight.numpy()
    )


def test_priors_may_have_captions_of_their_own(model, data, tmp_path):
    run = TrainingRun(
        configuration(model, data, tmp_path, "data.instance_prompt=a sks circle", f"data.class_path={data}")
    )
    batch = run.task.batches(np.random.default_rng(0), 0)
    assert batch.prompts[0] == "a sks circle"
    assert batch.prompts[1] in {f"a circle number {i}" for i in range(4)}


def test_priors_may_be_compared_with_the_model_before_training(model, data, tmp_path):
    settings = ("data.instance_prompt=a sks circle", f"data.class_path={data}", "data.prior_target=model")
    texts = ("lora.train_text_encoders=true", "text.caption_dropout=0.5", "text.encoder_dropout=0.5")
    chosen = configuration(model, data, tmp_path, *settings, *texts, "training.learning_rate=0.1")
    run = TrainingRun(chosen)

    asked = []
    ask = run.task._before_training
    run.task._before_training = lambda *given: asked.append(ask(*given)) or asked[-1]

    def errors():
        return run.task.loss(np.random.default_rng(0), 0)[1]["errors"]

    instance, prior = errors()
    assert instance > 0.1 and prior < 1e-9  # the LoRA changes nothing yet
    run.run()
    assert errors()[1] > 1e-4
    assert len(asked) == 6 and np.array_equal(asked[0].numpy(), asked[-1].numpy())
    assert TrainingRun(chosen).trainer.resume()


@pytest.mark.parametrize(
    "settings, says",
    [
        (["data.class_prompt=a circle", "method=full"], "only method 'lora' can switch off what it trains"),
        ([], "there are no pictures to keep"),
    ],
)
def test_a_model_before_training_that_cannot_be_asked(model, data, tmp_path, settings, says):
    with pytest.raises(ConfigError, match=says):
        TrainingRun(configuration(model, data, tmp_path, "data.prior_target=model", *settings))


def test_dreambooth_with_prior_preservation(model, data, tmp_path):
    settings = ("data.instance_prompt=a sks circle", "data.class_prompt=a circle", "data.class_images=3")
    chosen = configuration(model, data, tmp_path, *settings, "data.prior_weight=0.5")
    run = TrainingRun(chosen)
    assert sorted(os.listdir(tmp_path / "class_images")) == [f"class-{i:05}.png" for i in range(3)]
    batch = run.batches(np.random.default_rng(0), 0)
    assert batch.prompts == ["a sks circle", "a circle"] and batch.weights.tolist() == [2.0, 1.0]
    run.run()
    assert TrainingRun(chosen).trainer.resume()  # and draws no class picture again


def test_validation_draws_the_pipelines_picture(model, data, tmp_path):
    """Before anything is learnt, the picture of the prompt and the seed that a pipeline draws."""
    settings = (
        "validation.prompts=[a circle, a cross]",
        "validation.num_inference_steps=2",
        "training.validate_every=2",
    )
    run = TrainingRun(configuration(model, data, tmp_path, *settings))
    run.validate(0)
    row = np.asarray(Image.open(tmp_path / "validation" / "step-00000000.png")).astype(int)
    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    picture = pipe(
        "a circle", height=64, width=64, num_inference_steps=2, generator=TorchGenerator(0), max_sequence_length=5
    ).images[0]
    assert row.shape == (64, 128, 3)
    assert np.abs(row[:, :64] - np.asarray(picture).astype(int)).max() <= 1


FILE = """
model: shapes
output: run   # where
data:
  path: pictures
  resolution: 64
training:
  learning_rate: 1e-4
  max_steps: 7
"""


def test_yaml_and_settings_on_top(tmp_path):
    (tmp_path / "run.yaml").write_text(FILE)
    found = read_configuration(tmp_path / "run.yaml", ["training.max_steps=9", "lora.rank=8"])
    assert (found.model, found.data.resolution, found.lora.rank) == ("shapes", 64, 8)
    assert (found.training.learning_rate, found.training.max_steps) == (1e-4, 9)
    assert (found.training.lr_schedule, found.training.ema_decay) == ("constant", None)  # defaults of fine-tuning


@pytest.mark.parametrize(
    "setting, named",
    [
        ("training.learning_rte=1", r"training\.learning_rte is no setting.*learning_rate"),
        ("trainer.max_steps=1", r"trainer is no setting.*training"),
        ("training.max_steps=many", r"`training\.max_steps` is 'many'"),
        ("training.max_steps=0", r"`training.max_steps` is 0|max_steps` is 0"),
        ("training=3", r"training is 3; it is a section"),
        ("model.path=x", r"model is .*, .*string|model"),
        ("data.batch_size=1.5", r"`data\.batch_size` is 1\.5"),
        ("method=lokr", r"`method` is 'lokr'.*'controlnet'"),
        ("text.caption_dropout=2", r"`text\.caption_dropout` is 2"),
        ("flow", r"--set flow: write section\.name=value"),
        ("data.path=[", r"--set data\.path=\[ is not valid YAML"),
    ],
)
def test_wrong_settings(tmp_path, setting, named):
    (tmp_path / "run.yaml").write_text(FILE)
    with pytest.raises(ConfigError, match=named):
        read_configuration(tmp_path / "run.yaml", [setting])


@pytest.mark.parametrize(
    "text, named",
    [("[1, 2]", "holds a list"), ("a: [", "not valid YAML"), ("model: shapes\noutput: x\n", r"data\.path is missing")],
)
def test_wrong_files(tmp_path, text, named):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"run\.yaml.*{named}"):
        read_configuration(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        read_configuration(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "setting, named",
    [
        ("method=controlnet", "control_column"),
        ("data.control_column=edges", "control_column"),
        ("validation.prompts=[x]", "validate_every"),
    ],
)
def test_settings_that_do_not_go_together(model, data, tmp_path, setting, named):
    with pytest.raises(ConfigError, match=named):
        TrainingRun(configuration(model, data, tmp_path, setting))


def test_options_of_other_trainers_keep_their_meaning():
    found = read_configuration(
        None,
        ["training.max_steps=9"],
        {
            "pretrained_model_name_or_path": "shapes",
            "output_dir": "runs/1",
            "instance_data_dir": "dogs",
            "instance_prompt": "a sks dog",
            "rank": "16",
            "lora_layers": "attn.to_k,attn.to_q",
            "learning_rate": "1e-4",
            "adam_beta2": "0.95",
            "weighting_scheme": "cosmap",
            "gradient_checkpointing": True,
            "cache_latents": True,
            "lr_scheduler": "cosine",
        },
    )
    assert (found.model, found.output, found.data.path) == ("shapes", "runs/1", "dogs")
    assert (found.lora.rank, found.lora.targets) == (16, ["attn.to_k", "attn.to_q"])
    assert (found.training.learning_rate, found.training.betas) == (1e-4, (0.9, 0.95))
    assert (found.flow.indexed, found.flow.density, found.flow.weight) == (True, "uniform", "cosmap*precondition")
    assert found.gradient_checkpointing and found.data.instance_prompt == "a sks dog"
    assert found.training.final_lr_ratio == 0  # where diffusers' cosine ends


@pytest.mark.parametrize(
    "options, density, weight",
    [
        ({"logit_mean": 0.6}, "logit_normal", "precondition"),
        ({"weighting_scheme": "sigma_sqrt"}, "uniform", "sigma_sqrt*precondition"),
        ({"weighting_scheme": "sigma_sqrt", "precondition_outputs": "0"}, "uniform", "sigma_sqrt"),
        ({"weighting_scheme": "mode", "precondition_outputs": 0}, "mode", "none"),
    ],
)
def test_flow_options_of_diffusers(options, density, weight):
    found = settings_of(options)
    assert (found["flow.density"], found["flow.weight"], found["flow.indexed"]) == (density, weight, True)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"network_module": "lycoris.kohya"}, r"--network_module lycoris.kohya: .*lora\.kind=lokr"),
        ({"full_bf16": True}, r"--full_bf16: updates vanish.*mixed_precision"),
        ({"use_8bit_adam": True}, r"--use_8bit_adam: .*adafactor"),
        ({"weighting_scheme": "sigma"}, r"--weighting_scheme sigma: use 'sigma_sqrt'"),
        ({"apply_t5_attn_mask": True}, "trained without masks"),
    ],
)
def test_options_that_are_refused(options, named):
    with pytest.raises(InputError, match=named):
        settings_of(options)


def test_options_of_layers_and_blocks_go_together():
    found = settings_of({"lora_layers": "attn.to_k,attn.to_q", "lora_blocks": "1, 12"})["lora.targets"]
    assert found == [f"transformer_blocks.{block}.attn.{layer}" for block in (1, 12) for layer in ("to_k", "to_q")]
    assert len(settings_of({"lora_blocks": 3})["lora.targets"]) == 4
    assert settings_of({"flow_schedule_shift": 2, "network_module": "networks.lora_sd3", "repeats": "4"}) == {
        "flow.shift": 2,
        "method": "lora",
    }


def test_options_of_other_trainers_are_settings():
    known = {line.partition(" (")[0] for line in list_settings(TrainConfiguration)}
    converted = [convert("networks.lora") for convert in CONVERTED.values()]
    assert {*SETTINGS.values(), *(name for values in converted for name in values)} <= known


def test_every_setting_has_a_meaning():
    lines = list_settings(TrainConfiguration)
    assert len(lines) > 55 and all(len(line.partition("): ")[2]) > 5 for line in lines)
    assert "training.lr_schedule ('constant'): " in "\n".join(lines)


def test_command(model, data, tmp_path, capsys):
    arguments = ["train", "--model", model, "--data", data, "--output", str(tmp_path)]
    for setting in ("data.resolution=64", "text.max_sequence_length=5", "training.max_steps=1"):
        arguments += ["--set", setting]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "pytorch_lora_weights.safetensors")
    diffusers = ["train", "--pretrained_model_name_or_path", model, "--instance_data_dir", data, "--output_dir"]
    diffusers += [str(tmp_path), "--max_train_steps", "1", "--resolution", "64", "--max_sequence_length", "5"]
    assert main([*diffusers, "--rank", "4", "--cache_latents"]) == 0  # the same run: nothing is left to do
    assert main([*diffusers, "--rank", "5"]) == 2 and "lora" in capsys.readouterr().err
    assert main(["train"]) == 2 and "--model" in capsys.readouterr().err
    assert main(["train", "--list"]) == 0 and "lora.rank (4)" in capsys.readouterr().out
