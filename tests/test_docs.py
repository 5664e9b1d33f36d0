"""The pages stay true: their code runs, their links lead somewhere, and the Chinese pages say the same."""

import ast
import functools
import importlib.util
import logging
import os
import pathlib

import pytest
from helpers import markdown, reader_files

import ppsd3
from ppsd3.cli import main as program

pytestmark = pytest.mark.docs

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
GUIDE = sorted((DOCS / "guide").glob("*.md"))
RUN = [ROOT / "README.md", *GUIDE, DOCS / "migrating.md"]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md"), *DOCS.rglob("*.md")])
NOT_RUN = 7  # Python blocks that need a GPU or another library: no more than these
PAGE_LENGTH = range(60, 121)
# Commands that only have to be understood: they take minutes, or a GPU.
LONG = ("bench", "samplers", "gpu", "serve", "webui", "download", "remove")
# What makes the code quick: steps of a call, and what is appended to a command.
STEPS = 3
QUICK = {command: ["--steps", str(STEPS)] for command in ("generate", "img2img", "inpaint", "control")}
QUICK["train"] = [w for s in ("training.max_steps=1", "data.resolution=64") for w in ("--set", s)]
QUICK["evaluate"] = ["--per-task", "1", "--steps", "1"]


def name_of(page):
    return str(page.relative_to(ROOT))


@functools.cache
def text(page):
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("reader")
    reader_files.make(directory)
    return directory


@pytest.fixture
def beside_the_files(files, tmp_path, monkeypatch):
    """The working directory of a reader."""
    for entry in files.iterdir():
        os.symlink(entry, tmp_path / entry.name)
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("ppsd3")
    monkeypatch.setattr(logger, "level", logger.level)  # which a page changes


@pytest.fixture
def few_steps(monkeypatch):
    """Calls of pipelines take STEPS steps at most."""
    for name in dir(ppsd3):
        if name.startswith("StableDiffusion3") and name.endswith("Pipeline"):
            class_ = getattr(ppsd3, name)
            monkeypatch.setattr(class_, "__call__", with_few_steps(class_.__call__))


def with_few_steps(call):
    @functools.wraps(call)
    def quick(*args, **options):
        if "sigmas" not in options:
            options["num_inference_steps"] = min(options.get("num_inference_steps", STEPS), STEPS)
        return call(*args, **options)

    return quick


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_code_of_a_page_runs(page, beside_the_files, few_steps):
    """From top to bottom: Python in one namespace, commands between."""
    names = {"__name__": "__main__"}
    for block in markdown.blocks(text(page)):
        if block.language == "bash":
            for command in block.commands():
                run_command(command)
        if block.language == "python" and not block.not_run:
            exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)


def run_command(words):
    """Runs a ``ppsd3`` command quickly, or, where it takes long, lets its arguments be read."""
    if words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).exists(), words
    if words[0] == "mkdir":
        os.mkdir(words[1])
    if words[0] != "ppsd3":
        return
    if any(word in LONG for word in words):
        program._parse(words[1:])
    else:
        assert program.main([*words[1:], *QUICK.get(words[1], [])]) == 0, words


def test_blocks_that_do_not_run_are_few():
    marked = [block for page in RUN for block in markdown.blocks(text(page)) if block.not_run]
    assert len(marked) <= NOT_RUN
    for block in marked:
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ppsd3":
                assert hasattr(ppsd3, node.attr), f"ppsd3.{node.attr}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_sound(page):
    """Its links lead somewhere, its Python is Python, its commands have the options that it names."""
    for block in markdown.blocks(text(page)):
        if block.language == "python":
            compile(block.code, page, "exec")
    for words in markdown.inline_commands(text(page)):
        if words[1] in program.COMMANDS and "--help" not in words and not any(word.isupper() for word in words):
            program._parse(words[1:])
    for link in markdown.links(text(page)):
        if "://" in link:
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if fragment:
            assert fragment in [markdown.anchor(title) for _, title in markdown.headings(text(target))], link


@pytest.mark.parametrize("page", [page for page in GUIDE if page.name != "README.md"], ids=name_of)
def test_a_page_of_the_guide_is_of_readable_length(page):
    assert len(text(page).splitlines()) in PAGE_LENGTH
    assert f"({page.name})" in text(page.parent / "README.md"), "the index does not name it"


ENGLISH_ONLY = ("api.md",)  # a table of names
CHINESE = {ROOT / "README.zh.md": ROOT / "README.md"}
CHINESE.update({page: DOCS / page.relative_to(DOCS / "zh") for page in sorted((DOCS / "zh").rglob("*.md"))})


def test_every_page_has_a_chinese_one():
    english = {page.relative_to(DOCS) for page in DOCS.rglob("*.md")}
    english = {page for page in english if page.parts[0] != "zh" and page.name not in ENGLISH_ONLY}
    assert english == {page.relative_to(DOCS / "zh") for page in CHINESE if page.parent != ROOT}


@pytest.mark.parametrize("page", CHINESE, ids=name_of)
def test_a_chinese_page_says_the_same(page):
    """As many headings of the same levels, the same code but for comments, the same figures in tables."""
    chinese, english = text(page), text(CHINESE[page])
    levels = [[level for level, _ in markdown.headings(side)] for side in (chinese, english)]
    assert levels[0] == levels[1]
    codes = [[meaning(block) for block in markdown.blocks(side)] for side in (chinese, english)]
    assert codes[0] == codes[1]
    assert markdown.numbers_in_tables(chinese) == markdown.numbers_in_tables(english)
    assert len(markdown.links(chinese)) == len(markdown.links(english))


def meaning(block):
    """What a block does, comments left out; the language alone for a diagram, whose words are translated."""
    if block.language == "python":
        return ast.dump(ast.parse(block.code))
    return block.commands() if block.language == "bash" else block.language


def maker(name):
    """A module that writes pages."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_names_is_what_the_code_says():
    assert text(DOCS / "api.md") == maker("make_api").page(), "run: python docs/make_api.py"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_of_other_trainers_options_is_what_the_code_says(language):
    pages = maker("make_training_options")
    wanted = pages.page(language)
    assert text(pages.PAGES[language]) == wanted, "run: python docs/make_training_options.py"
    missing = [name for name in pages.names.ALL if f"| `--{name}` |" not in wanted]
    assert not missing
