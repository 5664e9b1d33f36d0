"""docs/architecture.md lists the files to read from a prompt to a picture: what runs is listed, and it only shrinks."""

import collections
import dis
import pathlib
import re
import sys

import pytest

import ppsd3
from ppsd3 import ops
from ppsd3.cli.main import main

PACKAGE = pathlib.Path(ppsd3.__file__).parent
PAGES = [PACKAGE.parent / "docs" / name for name in ("architecture.md", "zh/architecture.md")]
ENOUGH = 20  # lines that run in a file; one in which fewer run is a helper, and may be missing in the list


def listed(page):
    """The files of the numbered list."""
    return re.findall(r"^\d+\. `([\w/]+\.py)`", page.read_text(encoding="utf-8"), re.MULTILINE)


def ratchet(page):
    """The number of lines that the page states."""
    (number,) = re.findall(r"\*\*([\d,]+)(?: lines of code| 行代码)\*\*", page.read_text(encoding="utf-8"))
    return int(number.replace(",", ""))


class Trace:
    """Records which functions of the package run, but for what ``from_pretrained`` calls."""

    def __init__(self):
        self.codes, self._loading = set(), 0

    def __enter__(self):
        self._before = sys.getprofile()
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_):
        sys.setprofile(self._before)

    def _event(self, frame, event, _):
        code = frame.f_code
        ours = code.co_filename.startswith(str(PACKAGE))
        if event == "call":
            if self._loading or (ours and self._name(frame) == "from_pretrained"):
                self._loading += 1
            elif ours:
                self.codes.add(code)
        elif event == "return" and self._loading:
            self._loading -= 1

    @staticmethod
    def _name(frame):
        """The function's, or of a decorator's wrapper that of what it wraps."""
        wrapped = frame.f_locals.get("function") if frame.f_code.co_name == "call" else None
        return getattr(wrapped, "__name__", frame.f_code.co_name)

    def lines(self):
        """dict: file -> number of lines with code in the functions that ran."""
        found = collections.defaultdict(set)
        for code in self.codes:
            file = pathlib.Path(code.co_filename).relative_to(PACKAGE).as_posix()
            found[file].update(line for _, line in dis.findlinestarts(code) if line)
        return {file: len(lines) for file, lines in found.items()}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """File -> lines that run between prompt and picture, with the definitions in Paddle, as on every machine."""
    command = ["generate", "a red circle", "--steps", "2", "--quiet"]
    command += ["--output", str(tmp_path_factory.mktemp("picture") / "picture.png")]
    with ops.use_kernels("reference"):
        assert main(command) == 0  # imports, and what runs once
        with Trace() as trace:
            assert main(command) == 0
    return trace.lines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_list_is_what_runs(page, lines):
    files = listed(page)
    assert len(files) == len(set(files)) > 0
    idle = [file for file in files if file not in lines]
    assert not idle, "these are listed and do not run"
    missing = {file: number for file, number in lines.items() if number >= ENOUGH and file not in files}
    assert not missing, "these run and are not listed"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_what_is_to_read_only_shrinks(page, lines):
    """Lower the number on the page when there is less to read; think twice before it is raised."""
    assert sum(lines.values()) <= ratchet(page)
