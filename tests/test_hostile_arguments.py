"""Wrong arguments of every public callable are taken, or refused by one of ppsd3's errors: never by a raw one."""

import inspect

import pytest
from helpers import hostile_values

import ppsd3

# Their arguments are files, for which others look.
OF_FILES = {"ConfigMixin", "ModelMixin", "SchedulerMixin", "convert", "export_pipeline", "IPAdapter"}
# Their arguments come from a configuration: tests/serialization and tests/fuzz try what that may hold.
CONFIGURED = {
    *("SD3Transformer2DModel", "SD3ControlNetModel", "SD3MultiControlNetModel"),
    *("CLIPTextModelWithProjection", "T5EncoderModel", "SiglipVisionModel", "SiglipImageProcessor"),
    *("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast"),
}
# Made by others, or without arguments of their own.
BASES = {
    *("DiffusionPipeline", "Guidance", "NoGuidance", "StableDiffusion3PipelineOutput", "tune_process"),
    *("AutoPipelineForText2Image", "AutoPipelineForImage2Image", "AutoPipelineForInpainting", "SD3CannyImageProcessor"),
    *("add_adapter", "get_peft_model_state_dict", "set_peft_model_state_dict", "from_paddlenlp"),
}


@pytest.fixture(scope="module")
def targets():
    return hostile_values.all_targets()


def report(faults):
    return "\n".join(f"{case}: {type(error).__name__}: {error}" for case, error in faults)


def test_some(targets):
    faults = hostile_values.run(hostile_values.cases(targets, 400, seed=1))
    assert not faults, report(faults)


@pytest.mark.machine
@pytest.mark.parametrize("group", hostile_values.ALL, ids=lambda group: group.__name__)
def test_many(group):
    faults = hostile_values.run(hostile_values.cases(list(group()), 2500, seed=2))
    assert not faults, report(faults)


def test_nothing_public_is_left_out(targets):
    tried = {target.name.partition(".")[0] for target in targets}
    public = {name for name in ppsd3.__all__ if callable(getattr(ppsd3, name)) and not name.startswith("__")}
    assert public - tried == OF_FILES | CONFIGURED | BASES


def test_the_right_arguments_are_right(targets):
    """Else every value would be refused because of another argument."""
    for target in targets:
        required = [p for p in inspect.signature(target.function).parameters.values() if p.default is p.empty]
        given = target.right()
        missing = [p.name for p in required if p.name not in given and p.kind is p.POSITIONAL_OR_KEYWORD]
        assert len([name for name in missing if name != "self"]) <= 1, f"{target.name} lacks {missing}"
