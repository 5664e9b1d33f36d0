"""Imports point only to the left in the order of layers that docs/architecture.md explains."""

import ast
import os
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "ppsd3"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A layer may import those before it, and its own; parts of one layer in SEPARATE don't know one another.
LAYERS = (
    ("utils", "configuration_utils", "outputs"),
    ("ops",),
    ("serialization",),
    ("quantization", "layerwise_casting", "compilation"),
    ("modeling_utils",),
    ("models", "transformers", "schedulers"),
    ("adapters",),
    ("loaders",),
    ("pipelines",),
    ("training", "evaluation", "shapes"),
    ("bench",),
    ("cli", "__main__"),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
SEPARATE = ("models", "transformers", "schedulers")

# Nothing here is needed before a function that uses it is called, and some of it may not be installed.
LAZY = (
    "diffusers", "huggingface_hub", "paddlenlp", "safetensors", "scipy", "sentencepiece", "tokenizers", "torch",
    "transformers",
)  # fmt: skip
# Importing paddle takes PIL and tqdm along, or they are cheap.
TOP_LEVEL = {"numpy", "paddle", "PIL", "tqdm"}


def imported(tree, module, package=PACKAGE.name):
    """[(line, dotted name)] of everything that the source imports, relative names made absolute.

    ``from a import b`` gives ``a.b``, whether ``b`` is a module or not.
    """
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = [package, *module.parent.parts]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            names += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return names


def is_for_type_checkers(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def part_of(module):
    """The part of the package that the file (relative to the package) belongs to."""
    return module.parts[0] if len(module.parts) > 1 else module.stem


def wrong_arrows(source, module):
    """[(line, what)] of the imports in ``source`` that break the order."""
    here, found = part_of(module), []
    for line, name in imported(ast.parse(source), module):
        root, _, rest = name.partition(".")
        there = rest.split(".")[0]
        if root != PACKAGE.name or there == here or (there not in LEVEL and there.startswith("__")):
            continue  # from elsewhere, from itself, or the package's own __version__
        if there not in LEVEL:
            found.append((line, f"{name} is in no layer of this test"))
        elif LEVEL[there] > LEVEL[here] or {here, there} <= set(SEPARATE):
            found.append((line, f"{here} imports {there}"))
    return found


def identify(path):
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_imports_point_left(path):
    module = path.relative_to(PACKAGE)
    if module == pathlib.Path("__init__.py"):  # names of public things, imported when they are asked for
        top = imported(ast.Module(ast.parse(path.read_text(encoding="utf-8")).body, []), module)
        assert {name.split(".")[1] for _, name in top if name.startswith("ppsd3.")} <= set(LAYERS[0])
    else:
        assert part_of(module) in LEVEL, f"give {part_of(module)} a layer in {os.path.basename(__file__)}"
        assert wrong_arrows(path.read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_modules_import_light_things_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {
        node
        for part in ast.walk(tree)
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)) or is_for_type_checkers(part)
        for node in ast.walk(part)
    }
    at_import = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) and n not in later]
    roots = {name.split(".")[0] for _, name in imported(ast.Module(at_import, []), path.relative_to(PACKAGE))}
    allowed = TOP_LEVEL | {PACKAGE.name, "__future__"}
    if hasattr(sys, "stdlib_module_names"):  # Python 3.10
        assert roots - sys.stdlib_module_names <= allowed
    assert not roots & set(LAZY)


def test_there_are_modules():
    assert len(MODULES) > 50
    assert {"models", "pipelines", "utils"} <= {part_of(path.relative_to(PACKAGE)) for path in MODULES}


@pytest.mark.parametrize(
    "module, source",
    [
        ("utils/x.py", "from ..ops import Linear"),
        ("models/x.py", "from ..pipelines.image_processor import VaeImageProcessor"),
        ("models/x.py", "def f():\n    from ..schedulers import y"),
        ("schedulers/x.py", "import ppsd3.transformers.clip"),
        ("transformers/clip/x.py", "from ...models import AutoencoderKL"),
        ("outputs.py", "from . import modeling_utils"),
        ("ops/native/x.py", "from ... import cli"),
        ("modeling_utils.py", "from ppsd3 import pipelines"),
        ("training/x.py", "from ..unheard_of import z"),
    ],
)
def test_a_wrong_arrow_is_seen(module, source):
    assert len(wrong_arrows(source, pathlib.Path(module))) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("models/x.py", "from .attention import y\nfrom ..ops import Linear\nimport transformers"),
        ("configuration_utils.py", "from . import __version__\nfrom .utils.errors import ConfigError"),
        ("shapes/x.py", "from ..training.trainer import Trainer"),
        ("__main__.py", "from .cli import main"),
    ],
)
def test_a_right_arrow_is_not(module, source):
    assert wrong_arrows(source, pathlib.Path(module)) == []
