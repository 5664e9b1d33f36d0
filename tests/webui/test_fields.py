"""Forms are made from where arguments are declared; what they hold is read as the call takes it."""

import dataclasses
from typing import Annotated, Optional

import pytest

import ppsd3
from ppsd3.pipelines.call_signature import Doc, takes
from ppsd3.serving import TASKS
from ppsd3.utils.checking import Range
from ppsd3.utils.errors import InputError
from ppsd3.webui import wording
from ppsd3.webui.drawing import task_fields
from ppsd3.webui.fields import fields_of, guidances, make_guidance


def of(name, task="generate"):
    return next(field for field in task_fields(task) if field.name == name)


def test_a_new_argument_appears_by_itself():
    @dataclasses.dataclass
    class New:
        glow: Annotated[Optional[float], Range(0, 2), Doc("how much it glows.")] = None

    class Pipeline:
        @takes(New)
        def __call__(self, arguments):
            """Draws."""

    (field,) = fields_of(Pipeline)
    assert (field.name, field.kind, field.group) == ("glow", "number", "New")
    assert wording.Words("zh").label(field) == "Glow"
    assert field.read("1.5") == 1.5
    with pytest.raises(InputError, match="glow"):
        field.read("3")


@pytest.mark.parametrize("task", TASKS)
def test_a_form_has_each_argument_once_and_the_common_ones_first(task):
    names = [field.name for field in task_fields(task)]
    assert len(set(names)) == len(names)
    assert names[0] == "prompt" and "generator" not in names


def test_numbers_lists_and_empty_fields_are_read():
    assert of("num_inference_steps").read("8") == 8
    assert of("num_inference_steps").read(8.0) == 8
    assert of("num_inference_steps").read("") is None
    assert of("skip_guidance_layers").read("7, 8 9") == [7, 8, 9]
    assert of("controlnet_conditioning_scale", "control").read("0.5") == 0.5
    assert of("controlnet_conditioning_scale", "control").read("0.5 1") == [0.5, 1]
    for name, value in (("num_inference_steps", "many"), ("num_inference_steps", "0"), ("skip_guidance_layers", "7.5")):
        with pytest.raises(InputError, match=name):
            of(name).read(value)
    assert of("skip_guidance_layers").read(of("skip_guidance_layers").shown([7, 8])) == [7, 8]


@pytest.mark.parametrize("name", guidances())
def test_each_guidance_is_made_from_its_form(name):
    values = {field.name: field.shown(field.default) for field in guidances()[name]}
    values["layers"] = "1 2"
    made = make_guidance(name, 4.0, values)
    assert isinstance(made, getattr(ppsd3, name)) and made.scale == 4.0
    assert all(field.text for field in guidances()[name])


def test_a_guidance_that_lacks_something_says_so():
    assert make_guidance("", 4.0, {}) is None
    with pytest.raises(InputError, match="layers"):
        make_guidance("SkipLayerGuidance", 4.0, {"layers": ""})
    with pytest.raises(InputError, match="no guidance"):
        make_guidance("os", 4.0, {})


def test_the_chinese_is_complete():
    """Of the arguments that there are now; and it has none that there is not."""
    used = {field.name for task in TASKS for field in task_fields(task)}
    used |= {field.name for fields in guidances().values() for field in fields}
    assert used - set(wording.FIELDS) == {"pag_adaptive_scale", "pag_scale"} - set(wording.FIELDS)
    assert set(wording.FIELDS) <= used
    groups = {field.group for task in TASKS for field in task_fields(task)}
    assert set(wording.GROUPS) <= groups
    assert set(wording.GROUPS.values()) <= set(wording.CHINESE)
