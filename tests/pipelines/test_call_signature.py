"""Signatures made from dataclasses: what a call takes is declared once, and every use of it says the same."""

import inspect
import re

import pytest

import ppsd3
from ppsd3.pipelines import call_signature
from ppsd3.pipelines.component_classes import PIPELINE_CLASSES
from ppsd3.pipelines.stable_diffusion_3 import arguments as declarations
from ppsd3.utils.errors import InputError, UnknownArgumentError

PIPELINES = [getattr(ppsd3, name) for name in PIPELINE_CLASSES]


@pytest.fixture(params=PIPELINES, ids=lambda pipeline: pipeline.__name__)
def pipeline(request):
    return request.param


def test_signature_help_and_data_agree(pipeline):
    parameters = list(inspect.signature(pipeline.__call__).parameters.values())
    described = pipeline.call_arguments()
    assert [p.name for p in parameters] == ["self", *(argument.name for argument in described)]
    assert [p.default for p in parameters[1:]] == [argument.default for argument in described]
    assert [p.annotation for p in parameters[1:]] == [argument.type for argument in described]
    doc = pipeline.__call__.__doc__
    positions = [re.search(rf"^    {argument.name}: ", doc, flags=re.MULTILINE).start() for argument in described]
    assert positions == sorted(positions)


def test_every_argument_is_explained(pipeline):
    for argument in pipeline.call_arguments():
        assert argument.text.endswith(".") and len(argument.text) > 10, argument.name
        assert argument.kind in {*call_signature.KINDS.values(), "python"}
        assert argument.option is None or re.fullmatch(r"--[a-z0-9-]+", argument.option)


def test_each_argument_is_declared_in_one_place():
    declared = {}
    for class_ in vars(declarations).values():
        for name, annotation in getattr(class_, "__dict__", {}).get("__annotations__", {}).items():
            if hasattr(annotation, "__metadata__"):
                declared.setdefault(name, []).append(class_.__name__)
    assert all(len(places) == 1 for places in declared.values()), declared
    assert set(declared) == {argument.name for pipeline in PIPELINES for argument in pipeline.call_arguments()}


def test_a_default_that_is_a_list_is_not_shared():
    first, second = declarations.TextToImageArguments(), declarations.TextToImageArguments()
    first.callback_on_step_end_tensor_inputs.append("prompt_embeds")
    assert second.callback_on_step_end_tensor_inputs == ["latents"]


class Taker:
    @call_signature.takes(declarations.ControlArguments)
    def take(self, arguments):
        """What is taken."""
        return arguments


def test_by_position_and_by_name():
    taken = Taker().take("a", None, "c", 32, width=48)
    assert (taken.prompt, taken.prompt_3, taken.height, taken.width) == ("a", "c", 32, 48)
    assert taken.num_inference_steps == 28


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        ((), {"promt": "a"}, "no argument 'promt'. Did you mean 'prompt'?"),
        ((), {"control_images": 1}, "Did you mean 'control_image'?"),
        ((), {"zzz": 1}, "It takes prompt, prompt_2"),
        (("a",), {"prompt": "b"}, "'prompt' is given twice"),
        (range(99), {}, "takes 35 arguments, but 99 were given"),
    ],
)
def test_refusals(args, kwargs, message):
    with pytest.raises(UnknownArgumentError, match=re.escape(message)) as caught:
        Taker().take(*args, **kwargs)
    assert isinstance(caught.value, InputError) and isinstance(caught.value, TypeError)
