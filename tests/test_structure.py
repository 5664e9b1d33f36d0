"""Imports point only to the left in the order of layers that docs/architecture.md explains."""

import ast
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
    ("adapters",),
    ("modeling_utils",),
    ("models", "transformers", "schedulers"),
    ("loaders",),
    ("pipelines", "callbacks", "image_processor"),
    ("training", "evaluation", "shapes", "training_utils", "optimization"),
    ("bench",),
    ("cli", "serving", "webui", "__main__"),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
SEPARATE = ("models", "transformers", "schedulers")

# Nothing here is needed before a function that uses it is called, and some of it may not be installed.
LAZY = (
    "diffusers", "huggingface_hub", "modelscope", "paddlenlp", "safetensors", "scipy", "sentencepiece", "tokenizers",
    "torch", "transformers",
)  # fmt: skip
# Importing paddle takes PIL and tqdm along, or they are cheap.
TOP_LEVEL = {"numpy", "paddle", "PIL", "tqdm"}

# Lower it where you can; a change that needs more belongs in another file.
MOST_LINES_OF_PIPELINES = 350


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


def part_of(module):
    """The part of the package that the file (relative to the package) belongs to."""
    return module.parts[0] if len(module.parts) > 1 else module.stem


def wrong_arrows(tree, module):
    """["line: what"] of the imports in ``tree``, the source of ``module``, that break the order."""
    here, found = part_of(module), []
    if here not in LEVEL:
        return [f"{here} is in no layer of this test"]
    for line, name in imported(tree, module):
        root, _, rest = name.partition(".")
        there = rest.split(".")[0]
        if root != PACKAGE.name or there == here or (there not in LEVEL and there.startswith("__")):
            continue  # from elsewhere, from itself, or the package's own __version__
        if there not in LEVEL:
            found.append(f"{line}: {name} is in no layer of this test")
        elif LEVEL[there] > LEVEL[here] or {here, there} <= set(SEPARATE):
            found.append(f"{line}: {here} imports {there}")
    return found


def is_not_run_at_import(node):
    """Functions, and what is for type checkers alone."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" and not node.orelse
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def heavy_imports(tree, module):
    """The libraries that the source imports as it is imported itself, and should not."""
    later = {node for outer in ast.walk(tree) if is_not_run_at_import(outer) for node in ast.walk(outer)}
    at_import = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) and n not in later]
    roots = {name.split(".")[0] for _, name in imported(ast.Module(at_import, []), module)}
    allowed = TOP_LEVEL | {PACKAGE.name, "__future__"}
    if hasattr(sys, "stdlib_module_names"):  # Python 3.10
        return sorted(roots - sys.stdlib_module_names - allowed)
    return sorted(roots & set(LAZY))


def assert_nothing_found(check):
    """``check(tree, module)`` lists nothing for any module of the package; else all that it lists is shown."""
    found = []
    for path in MODULES:
        module = path.relative_to(PACKAGE)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [f"{module.as_posix()}: {what}" for what in check(tree, module)]
    assert not found, "\n".join(found)


def test_imports_point_left():
    def check(tree, module):
        return [] if module == pathlib.Path("__init__.py") else wrong_arrows(tree, module)

    assert_nothing_found(check)


def test_the_package_itself_imports_the_lowest_layer_only():
    """All other names are imported when they are asked for."""
    module = pathlib.Path("__init__.py")
    names = imported(ast.parse((PACKAGE / module).read_text(encoding="utf-8")), module)
    assert {name.split(".")[1] for _, name in names if name.startswith("ppsd3.")} <= set(LAYERS[0])


def test_modules_import_light_things_only():
    assert_nothing_found(heavy_imports)


# Functions that write files, of os, shutil and tempfile, and methods of paths.
WRITERS = {
    **dict.fromkeys(["os.replace", "os.rename", "os.renames", "shutil.move", "shutil.copytree", "shutil.rmtree"], ""),
    **dict.fromkeys(["tempfile.mkstemp", "tempfile.NamedTemporaryFile"], ""),
    **dict.fromkeys(["write_text", "write_bytes"], "path."),
}
# Where files are written as utils/files.py says; and the benchmarks, whose files live as long as a run.
WRITES = ("utils/files.py", "utils/temporary.py", "bench/", "cli/bench.py")


def written_directly(tree, module):
    """Places in the source that write files other than by ``utils/files.py``: another process may see half of one."""
    found = []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(node.func)
        modes = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "mode")]
        if name == "open" and any(isinstance(m, ast.Constant) and set(str(m.value)) & set("wx+") for m in modes):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
        if name in WRITERS or (isinstance(node.func, ast.Attribute) and WRITERS.get(node.func.attr) == "path."):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return [] if module.as_posix().startswith(WRITES) else found


def test_files_are_written_whole():
    """Use atomic_write, write_new or replacing, and discard."""
    assert_nothing_found(written_directly)


@pytest.mark.parametrize(
    "source", ["open(p, 'w')", "open(p, mode='xb')", "os.replace(a, b)", "path.write_text('x')", "shutil.rmtree(p)"]
)
def test_what_would_be_found(source):
    assert written_directly(ast.parse(source), pathlib.Path("models/x.py"))
    assert not written_directly(ast.parse("open(p, 'rb'); open(p, 'a'); open(p)"), pathlib.Path("models/x.py"))


def test_json_has_one_reader():
    """utils/json_files.py limits sizes and depth, and words the errors. The benchmarks' processes trust one another."""

    def check(tree, module):
        if module.name == "json_files.py" or part_of(module) == "bench":
            return []
        names = [name for _, name in imported(tree, module)]
        aliases = [f"import of {name}" for name in names if name in ("json.load", "json.loads", "json.JSONDecoder")]
        attributes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
        calls = [n for n in attributes if isinstance(n.value, ast.Name) and n.value.id == "json" and n.attr != "dumps"]
        return aliases + [f"{node.lineno}: json.{node.attr}; use utils/json_files.py" for node in calls]

    assert_nothing_found(check)


def test_the_files_of_the_eight_pipelines_do_not_grow():
    """They hold what each adds; a signature, or whatever two of them share, has one place elsewhere."""
    files = [path for path in MODULES if path.name.startswith("pipeline_") and path.parent.name == "stable_diffusion_3"]
    files = [path for path in files if path.name != "pipeline_output.py"]
    assert len(files) == 8
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= MOST_LINES_OF_PIPELINES


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
        ("unheard_of/x.py", "import os"),
    ],
)
def test_a_wrong_arrow_is_seen(module, source):
    assert len(wrong_arrows(ast.parse(source), pathlib.Path(module))) == 1


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
    assert wrong_arrows(ast.parse(source), pathlib.Path(module)) == []


@pytest.mark.parametrize(
    "source, heavy",
    [
        ("import os\nfrom paddle import nn\nfrom ..utils import files", []),
        ("def f():\n    import torch", []),
        ("if TYPE_CHECKING:\n    import torch", []),
        ("if torch_is_there:\n    import torch", ["torch"]),
        ("import torch.nn", ["torch"]),
        ("try:\n    from transformers import x\nexcept ImportError:\n    pass", ["transformers"]),
        ("class A:\n    import diffusers", ["diffusers"]),
    ],
)
def test_a_heavy_import_is_seen(source, heavy):
    assert heavy_imports(ast.parse(source), pathlib.Path("models/x.py")) == heavy
