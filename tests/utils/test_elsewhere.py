"""Names of other libraries: each is answered with what to use, where Python asks for it."""

import importlib
import importlib.util
import re

import pytest

import ppsd3
from ppsd3.utils import elsewhere
from ppsd3.utils.errors import InputError, PPSD3Error, UnknownArgumentError, UnknownNameError

TABLES = {name: table for name, table in vars(elsewhere).items() if name.isupper()}


@pytest.mark.parametrize("name", TABLES)
def test_every_line_is_a_pattern_and_a_sentence(name):
    for pattern, remedy in TABLES[name].items():
        re.compile(pattern)
        assert (remedy[0].isupper() or remedy.startswith("ppsd3 ")) and remedy.endswith("."), pattern


@pytest.mark.parametrize("name", TABLES)
def test_what_is_recommended_is_there(name):
    """``ppsd3.a.b`` in a remedy can be imported."""
    for remedy in TABLES[name].values():
        for path in re.findall(r"ppsd3((?:\.\w+)+)", remedy):
            value = ppsd3
            for part in path.split(".")[1:]:
                try:
                    value = getattr(value, part)
                except AttributeError:
                    value = importlib.import_module(f"{value.__name__}.{part}")


def test_methods_that_are_there_are_not_refused():
    from ppsd3.utils.elsewhere import METHODS, remedy_for

    for class_ in (ppsd3.StableDiffusion3Pipeline, ppsd3.SD3Transformer2DModel, ppsd3.AutoencoderKL):
        own = [n for c in class_.__mro__ if c.__module__.startswith("ppsd3") for n in vars(c) if not n.startswith("_")]
        assert [name for name in own if remedy_for(name, METHODS)] == []


def test_arguments_that_are_there_are_not_refused():
    known = {argument.name for argument in ppsd3.StableDiffusion3ControlNetPipeline.call_arguments()}
    assert [name for name in known if elsewhere.remedy_for(name, elsewhere.CALL_ARGUMENTS)] == []


@pytest.mark.parametrize(
    "statement, answer",
    [
        ("from ppsd3 import DDIMScheduler", "FlowMatchEulerDiscreteScheduler"),
        ("from ppsd3 import BitsAndBytesConfig", r"quantize\('int8'\)"),
        ("from ppsd3 import StableDiffusion3Pipline", "Did you mean 'StableDiffusion3Pipeline'"),
        ("from ppsd3.models import UNet2DConditionModel", "SD3Transformer2DModel"),
        ("from ppsd3.models.unet_2d_condition import UNet2DConditionModel", "SD3Transformer2DModel"),
        ("from ppsd3.utils import check_min_version", "Leave it out"),
        ("from ppsd3.callbacks import SDXLCFGCutoffCallback", "SD3CFGCutoffCallback"),
        ("from ppsd3.adapters import IPAdapter", r"ppsd3\.IPAdapter"),
        ("import ppsd3.accelerate", "Trainer"),
    ],
)
def test_imports(statement, answer):
    with pytest.raises(ImportError, match=answer) as caught:
        exec(statement, {})
    assert isinstance(caught.value, PPSD3Error)


def test_other_imports_are_left_alone():
    for statement in ("from ppsd3 import nothing", "import ppsd3.nothing", "import nothing_at_all"):
        with pytest.raises(ImportError) as caught:
            exec(statement, {})
        assert not isinstance(caught.value, PPSD3Error)
    assert importlib.util.find_spec("ppsd3.nothing") is None
    assert not hasattr(ppsd3, "DDIMScheduler") and not hasattr(ppsd3.utils, "export_to_video")
    elsewhere.answer_imports()
    import sys

    assert sum(type(finder).__name__ == "_Finder" for finder in sys.meta_path) == 1


@pytest.mark.parametrize("name", ["callback", "callback_steps", "seed", "cross_attention_kwargs", "eta"])
def test_arguments_of_a_call(name):
    with pytest.raises(UnknownArgumentError, match=rf"The call has no argument '{name}'\. [A-Z]") as caught:
        ppsd3.StableDiffusion3Pipeline.__call__(None, "a", **{name: 1})
    assert isinstance(caught.value, InputError) and isinstance(caught.value, TypeError)


def test_attributes_of_the_package():
    with pytest.raises(UnknownNameError, match="SD3ControlNetModel"):
        _ = ppsd3.ControlNetModel
    with pytest.raises(UnknownNameError, match="draws pictures"):
        _ = ppsd3.utils.export_to_gif
