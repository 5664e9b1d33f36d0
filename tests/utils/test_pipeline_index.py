"""``model_index.json`` from a stranger: pairs of library and class, of folders beside it, or a refusal."""

import json

import pytest

import ppsd3
from ppsd3.cli.main import main
from ppsd3.utils.errors import CheckpointError, ConfigError
from ppsd3.utils.pipeline_index import named_class, read_pipeline_index

SOUND = {
    "_class_name": "StableDiffusion3Pipeline",
    "_diffusers_version": "0.42.1",
    "_name_or_path": ["not", "looked", "at"],
    "pag_applied_layers": ["blocks.0", "blocks.1", "blocks.2"],
    "requires_safety_checker": False,
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "text_encoder_3": [None, None],
}
HOSTILE = [
    ({"transformer": ["diffusers"]}, "'transformer': \\['diffusers'\\]; a component is a pair"),
    ({"transformer": ["diffusers", "SD3Transformer2DModel", 1]}, "a component is a pair"),
    ({"transformer": ["diffusers", ["SD3Transformer2DModel"]]}, "a component is a pair"),
    ({"transformer": [{}, {}]}, "a component is a pair"),
    ({"transformer": []}, "a component is a pair"),
    ({"../../vae": ["diffusers", "AutoencoderKL"]}, "not a folder beside it"),
    ({"/etc": ["diffusers", "AutoencoderKL"]}, "not a folder beside it"),
    ({"a/b": ["diffusers", "AutoencoderKL"]}, "not a folder beside it"),
    ({"..": ["diffusers", "AutoencoderKL"]}, "not a folder beside it"),
    ({"": ["diffusers", "AutoencoderKL"]}, "not a folder beside it"),
    ({"_class_name": ["StableDiffusion3Pipeline"]}, "_class_name"),
    ({"_class_name": 3}, "_class_name"),
]


def test_a_sound_index_is_read(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps(SOUND))
    assert read_pipeline_index(tmp_path) == SOUND


@pytest.mark.parametrize("change, says", HOSTILE)
def test_a_hostile_one_is_refused_wherever_it_is_read(tmp_path, change, says, capsys):
    path = tmp_path / "model_index.json"
    path.write_text(json.dumps({**SOUND, **change}))
    for read in (
        read_pipeline_index,
        ppsd3.DiffusionPipeline.from_pretrained,
        ppsd3.StableDiffusion3Pipeline.from_pretrained,
        ppsd3.AutoPipelineForText2Image.from_pretrained,
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            read(tmp_path)
        assert str(path) in str(caught.value)
    for command in (["info", str(tmp_path)], ["convert", str(tmp_path), str(tmp_path / "new")]):
        assert main(command) != 0
        assert str(path) in capsys.readouterr().err


def test_a_component_that_is_no_list(tmp_path):
    path = tmp_path / "model_index.json"
    for entry in (5, "diffusers", {"a": 1}, None, True):
        path.write_text(json.dumps({**SOUND, "transformer": entry}))
        with pytest.raises((ConfigError, CheckpointError), match=str(path)):
            ppsd3.StableDiffusion3Pipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "config, name",
    [
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ({"architectures": ["T5EncoderModel", "T5Model"]}, "T5EncoderModel"),
        ({"tokenizer_class": "CLIPTokenizer"}, "CLIPTokenizer"),
        ({"_class_name": "", "architectures": ["A"]}, "A"),
        ({"_class_name": [1], "architectures": 5}, None),
        ({"architectures": [[]]}, None),
        ({"architectures": []}, None),
        ({}, None),
    ],
)
def test_the_class_of_a_configuration(config, name):
    assert named_class(config) == name
