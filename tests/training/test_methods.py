"""The methods of `ppsd3 train` beside plain LoRA: what is trained, what is saved, and that it resumes."""

import pathlib

import numpy as np
import pytest
from helpers.training_runs import configuration, draw, write_data, write_model

from ppsd3 import StableDiffusion3Pipeline
from ppsd3.serialization.readers import SafetensorsFile
from ppsd3.training.runs import TrainingRun
from ppsd3.utils.errors import ConfigError, InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def weights_of(path):
    """The bytes of what was saved, a file or a directory."""
    path = pathlib.Path(path)
    return (next(path.glob("*.safetensors")) if path.is_dir() else path).read_bytes()


def run_twice(model, data, tmp_path, *settings):
    """(the run, what it saved); interrupted and resumed, another run has saved the same bytes."""
    whole = TrainingRun(configuration(model, data, tmp_path / "whole", *settings))
    path = whole.run()
    TrainingRun(configuration(model, data, tmp_path / "parts", *settings)).run(until=3)
    again = TrainingRun(configuration(model, data, tmp_path / "parts", *settings)).run()
    assert weights_of(path) == weights_of(again)
    return whole, path


def numbers(network):
    return {name: parameter.numpy().copy() for name, parameter in network.state_dict().items()}


WORD = ("method=textual_inversion", "textual_inversion.token=<blob>", "textual_inversion.vectors=2",
        "textual_inversion.initial_word=circle", "data.instance_prompt=a photo of <blob>")  # fmt: skip


def test_a_word_is_all_that_textual_inversion_trains(model, data, tmp_path):
    run, path = run_twice(model, data, tmp_path, *WORD, "training.learning_rate=0.1", "training.ema_decay=0.9")
    tensors = {key: SafetensorsFile(path).read(key).numpy() for key in ("clip_l", "clip_g")}
    assert {key: tensor.shape for key, tensor in tensors.items()} == {"clip_l": (2, 16), "clip_g": (2, 12)}
    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    for name in ("text_encoder", "text_encoder_2", "transformer"):
        before, after = numbers(getattr(pipe, name)), numbers(getattr(run.pipe, name))
        for key, value in before.items():
            np.testing.assert_array_equal(
                after[key.replace("token_embedding.", "token_embedding.table.")][: len(value)]
                if "token_embedding" in key
                else after[key],
                value,
                err_msg=key,
            )
    (first,) = pipe.tokenizer.encode("circle", add_special_tokens=False)[:1]
    start = pipe.text_encoder.get_input_embeddings().weight[first].numpy()
    assert 1e-3 < np.abs(tensors["clip_l"][0] - start).max() < 1  # it began there, and moved
    plain = draw(pipe, "a <blob>")
    pipe.load_textual_inversion(path)  # the word is in the file
    assert np.abs(draw(pipe, "a <blob>") - plain).max() > 1e-3
    np.testing.assert_array_equal(draw(pipe, "a circle"), draw(StableDiffusion3Pipeline.from_pretrained(model)))
    pipe.save_textual_inversion(tmp_path, "<blob>")
    assert weights_of(tmp_path / "learned_embeds.safetensors") == weights_of(path)


def test_textual_inversion_of_one_encoder(model, data, tmp_path):
    settings = (*WORD, "textual_inversion.text_encoders=[text_encoder_2]", "gradient_checkpointing=true")
    run = TrainingRun(configuration(model, data, tmp_path, *settings))
    assert run.pipe.text_encoder is None and list(run.trainer.parameters) == [
        "text_encoder_2.text_model.embeddings.token_embedding.learnt"
    ]
    assert list(SafetensorsFile(run.run()).keys()) == ["<blob>"]  # diffusers' layout


@pytest.mark.parametrize(
    "setting, named",
    [
        (
            "data.instance_prompt=a photo",
            r"No caption has the word '<blob>'.*data\.instance_prompt='a photo of <blob>'",
        ),
        ("textual_inversion.token='!'", "the token '!' already"),
        ("textual_inversion.initial_word=''", "initial_word is ''"),
        ("data.control_column=edges", "method=controlnet"),
    ],
)
def test_words_that_cannot_be_learnt(model, data, tmp_path, setting, named):
    with pytest.raises((ConfigError, InputError), match=named):
        TrainingRun(configuration(model, data, tmp_path, *WORD, setting))
