"""What type checkers see of the package: no errors in it, types for all public names, and misspelt arguments."""

import importlib
import inspect
import json
import os
import pathlib
import pkgutil
import subprocess

import pytest

import ppsd3
from ppsd3 import ops, training

pytestmark = pytest.mark.lint

ROOT = pathlib.Path(__file__).parent.parent
# What basedpyright says of a function whose own annotations are incomplete. (That an attribute of a class is inferred,
# and not declared, makes the class "partially unknown" to it: that is no complaint here.)
INCOMPLETE = ("is missing", "has unknown type", "unknown for")

# A call of a pipeline -> what the message about it has to say; None: it is right.
TEXT, IMAGE = "StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"
CALLS = [
    (TEXT, 'prompt="a cat"', None),
    (TEXT, '"a cat", None, None, 512, 512', None),
    (TEXT, '["a cat", "a dog"], num_inference_steps=28, guidance_scale=4.5', None),
    (TEXT, 'promt="a cat"', '"promt"'),
    (TEXT, '"a cat", strength=0.5', '"strength"'),
    (TEXT, '"a cat", height="512"', '"height"'),
    (IMAGE, 'prompt="a cat", image=None, strength=0.5', None),
    (IMAGE, 'prompt="a cat", image=None, strenght=0.5', '"strenght"'),
    (IMAGE, 'prompt="a cat", image=None, num_inference_step=4', '"num_inference_step"'),
]


def check(*arguments, cwd=ROOT):
    """basedpyright's report as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["basedpyright", "--outputjson", *arguments]
    result = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr  # 1: it has found something
    return json.loads(result.stdout)


def errors_of(report):
    """[(file, line from 1, message)]"""
    return [
        (pathlib.Path(found["file"]), found["range"]["start"]["line"] + 1, found["message"])
        for found in report["generalDiagnostics"]
        if found["severity"] == "error"
    ]


def public_objects():
    """Whatever is public: of ``ppsd3``, of ``ppsd3.ops``, and of the modules of ``ppsd3.training``."""
    yield from (getattr(ppsd3, name) for name in ppsd3.__all__ if name != "__version__")
    for module in [ops, *(importlib.import_module(f"{training.__name__}.{m.name}") for m in modules_of(training))]:
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and getattr(value, "__module__", None) == module.__name__
            and (inspect.isclass(value) or inspect.isroutine(value))
        ]
        yield from (getattr(module, name) for name in names)


def modules_of(package):
    return pkgutil.iter_modules(package.__path__)


def functions_of(thing):
    """A function itself; of a class its methods and properties, those that it inherits from others of ours included."""
    if not inspect.isclass(thing):
        return [inspect.unwrap(thing)]
    found = []
    for class_ in thing.__mro__:
        for name, value in vars(class_).items() if class_.__module__.startswith("ppsd3.") else ():
            value = getattr(value, "__func__", getattr(value, "fget", value))
            if inspect.isfunction(value) and (not name.startswith("_") or name in ("__init__", "__call__")):
                found.append(inspect.unwrap(value))
    return found


def test_no_errors():
    found = errors_of(check())
    assert not found, "\n".join(f"{path.relative_to(ROOT)}:{line}: {message}" for path, line, message in found)


def test_public_functions_have_types():
    """Each parameter, and what is returned, with the arguments of generic types; other packages' may be unknown."""
    report = check("--verifytypes", "ppsd3", "--ignoreexternal")["typeCompleteness"]
    known = {symbol["name"]: symbol.get("diagnostics", []) for symbol in report["symbols"]}
    names = {f"{f.__module__}.{f.__qualname__}" for thing in public_objects() for f in functions_of(thing)}
    assert len(names & known.keys()) > 350
    messages = {name: [found["message"] for found in known.get(name, [])] for name in names}
    missing = sorted(
        name
        for name, said in messages.items()
        if any(text in message for message in said for text in INCOMPLETE if "docstring" not in message)
    )
    assert not missing, "\n".join(missing)


def test_arguments_of_calls_are_checked(tmp_path):
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps({"extraPaths": [str(ROOT)], "pythonVersion": "3.9", "typeCheckingMode": "basic"})
    )
    lines = [f'ppsd3.{name}.from_pretrained("shapes")({arguments}).images' for name, arguments, _ in CALLS]
    (tmp_path / "calls.py").write_text("import ppsd3\n" + "\n".join(lines) + "\nppsd3.StableDiffusion4Pipeline\n")
    messages = {}
    for _, line, message in errors_of(check("--project", str(tmp_path), cwd=tmp_path)):
        messages.setdefault(line, []).append(message)
    for line, (name, arguments, expected) in enumerate(CALLS, start=2):
        said = messages.pop(line, [])
        assert len(said) == (expected is not None), (name, arguments, said)
        assert all(expected in message for message in said), (name, arguments, said)
    assert list(messages) == [len(CALLS) + 2], "a public name that is none is reported, and nothing else"
