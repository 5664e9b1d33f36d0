"""Writes docs/api.md from the code: ``python docs/make_api.py``; ``--check`` only says whether the page is true."""

import importlib
import inspect
import pathlib
import re
import sys

import ppsd3
from ppsd3.cli.main import COMMANDS
from ppsd3.pipelines.component_classes import PIPELINE_CLASSES

PAGE = pathlib.Path(__file__).parent / "api.md"

# Heading -> how the public names under it begin or end; what fits nowhere comes under the last one.
GROUPS = {
    "Pipelines": r"^StableDiffusion3.*Pipeline$",
    "Pipelines of any task": r"Pipeline",
    "Networks": r"Model$|^Autoencoder|WithProjection$|^IPAdapter$",
    "Tokenizers and processors": r"Tokenizer$|Processor$",
    "Schedulers": r"Scheduler$",
    "Guidance": r"Guidance",
    "Caches": r"Cache$",
    "Everything else": "",
}

# Modules below the top level whose names are public.
MODULES = (
    "ops",
    "adapters",
    "models.attention_processor",
    "serialization",
    "training.trainer",
    "training.text_to_image",
    "training.runs",
    "training.estimate",
    "training.rehearsal",
    "training.plots",
    "training.configuration",
    "training.objective_transformer",
    "training.controlnet",
    "training.autoencoder",
    "training.flow_matching",
    "training.timestep_sampling",
    "training.ema",
    "shapes",
    "utils.errors",
    "utils.hub",
    "utils.random",
)

TASKS = {  # pipeline -> what the table of arguments calls it
    "StableDiffusion3Pipeline": "text",
    "StableDiffusion3Img2ImgPipeline": "img2img",
    "StableDiffusion3InpaintPipeline": "inpaint",
    "StableDiffusion3PAGPipeline": "PAG",
    "StableDiffusion3PAGImg2ImgPipeline": "PAG img2img",
    "StableDiffusion3ControlNetPipeline": "control",
    "StableDiffusion3ControlNetImg2ImgPipeline": "control img2img",
    "StableDiffusion3ControlNetInpaintingPipeline": "control inpaint",
}


def page():
    """The text of docs/api.md."""
    parts = [
        "# Public names",
        "<!-- Written by docs/make_api.py: change the docstrings, not this page. -->",
        _INTRODUCTION,
    ]
    names = [name for name in ppsd3.__all__ if not name.startswith("_")]
    for heading, pattern in GROUPS.items():
        chosen = [name for name in names if re.search(pattern, name)]
        names = [name for name in names if name not in chosen]
        methods = {name: _methods(getattr(ppsd3, name)) for name in chosen}
        shared = _shared(methods.values())
        rows = [
            (f"`{name}`", _summary(getattr(ppsd3, name)), _listed(m for m in methods[name] if m not in shared))
            for name in chosen
        ]
        parts += [f"## {heading}", _table(("name", "", "methods"), rows)]
        if shared:
            parts.append(f"Those with methods have {_listed(shared)} too.")
    parts += [
        "## Arguments of a call",
        _ARGUMENTS,
        _table(("argument", "default", "option", "tasks", ""), _arguments()),
    ]
    for module in MODULES:
        rows = [(f"`{name}`", _summary(value)) for name, value in _members(f"ppsd3.{module}")]
        parts += [f"## `ppsd3.{module}`", _table(("name", ""), rows)]
    commands = [(f"`ppsd3 {name}`", summary) for name, summary in COMMANDS.items()]
    parts += ["## The program `ppsd3`", _table(("command", ""), commands), "`ppsd3 COMMAND --help` lists the options."]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = (
    "Names of `ppsd3` first, then of its modules. `help(name)` has the details: shapes, defaults, errors. What begins "
    "with an underscore, and modules that are not listed here, may change between versions."
)
_ARGUMENTS = (
    "In the order of the signature; `PIPELINE.call_arguments()` gives them as data. Tasks: "
    + ", ".join(f"*{short}* `{name}`" for name, short in TASKS.items())
    + "."
)


def _arguments():
    found = {}
    for pipeline in PIPELINE_CLASSES:
        for argument in getattr(ppsd3, pipeline).call_arguments():
            found.setdefault(argument.name, []).append((TASKS[pipeline], argument))
    rows = []
    for name, uses in found.items():
        first = uses[0][1]
        defaults = {}
        for task, argument in uses:
            defaults.setdefault(repr(argument.default), []).append(task)
        usual = max(defaults, key=lambda value: len(defaults[value]))
        shown = [f"`{usual}`", *(f"{', '.join(t)}: `{value}`" for value, t in defaults.items() if value != usual)]
        tasks = "all" if len(uses) == len(TASKS) else ", ".join(task for task, _ in uses)
        option = f"`{first.option}`" if first.option and name != "prompt" else ""
        rows.append((f"`{name}`", "; ".join(shown), option, tasks, f"{first.text} {first.forms}".strip()))
    return rows


def _members(module):
    module = importlib.import_module(module)
    listed = getattr(module, "__all__", None)
    if listed is None:  # what is defined there
        listed = [
            n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__ and n[0] != "_"
        ]
    return [(name, getattr(module, name)) for name in listed]


def _shared(groups):
    """Methods of all classes that have several, in order."""
    groups = [methods for methods in groups if len(methods) > 2]
    return [name for name in groups[0] if all(name in methods for methods in groups)] if len(groups) > 1 else []


def _listed(names):
    return ", ".join(f"`{name}`" for name in names)


def _methods(value):
    if not inspect.isclass(value):
        return []
    own = [
        name
        for class_ in value.__mro__
        if class_.__module__.startswith("ppsd3")
        for name, member in vars(class_).items()
        if name[0] != "_" and (inspect.isfunction(member) or isinstance(member, (classmethod, staticmethod)))
    ]
    return [name for name in dict.fromkeys(own) if name != "extra_repr"]


def _summary(value):
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    sentence = re.match(r".*?[.:](?= [A-Z`]|$)", text)
    text = sentence.group() if sentence else text
    return re.sub(r":(?:class|meth|func|mod):`~?([^`]+)`", r"`\1`", text).replace("``", "`").rstrip(":")


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(
            0 if PAGE.read_text(encoding="utf-8") == page() else "docs/api.md is not what docs/make_api.py writes."
        )
    PAGE.write_text(page(), encoding="utf-8")
