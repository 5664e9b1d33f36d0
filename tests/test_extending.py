"""docs/extending.md: the diffs apply to the package, and the code runs with them."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.docs

ROOT = pathlib.Path(__file__).parent.parent
SECTIONS = re.split(r"^## ", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
LONGEST = 30  # lines of code that an extension may take


def blocks(section, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


def apply(diff, tree):
    """Replaces each hunk's old lines, found by themselves and once, by its new ones."""
    path = None
    for part in re.split(r"^(?=--- a/|@@)", diff, flags=re.MULTILINE):
        if part.startswith("--- a/"):
            path = tree / part.split("--- a/")[1].strip()
        elif part.startswith("@@"):
            lines = part.splitlines()[1:]
            old = "\n".join(line[1:] for line in lines if not line.startswith("+"))
            new = "\n".join(line[1:] for line in lines if not line.startswith("-"))
            text = path.read_text(encoding="utf-8")
            assert text.count(old) == 1, f"{path.name} has {text.count(old)} places like this:\n{old}"
            path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("section", SECTIONS, ids=[section.split("\n")[0] for section in SECTIONS])
def test_it_works_as_written(section, tmp_path):
    code, diffs = "\n".join(blocks(section, "python")), blocks(section, "diff")
    assert code
    changes = [line for diff in diffs for line in diff.splitlines() if line.startswith(("+", "-"))]
    assert len(changes or code.splitlines()) <= LONGEST
    shutil.copytree(ROOT / "ppsd3", tmp_path / "ppsd3", ignore=shutil.ignore_patterns("__pycache__"))
    for diff in diffs:
        apply(diff, tmp_path)
    if diffs:  # nothing of it is there already
        assert run(ROOT, "-c", code).returncode != 0
    done = run(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr


def run(tree, *arguments):
    """Python with the package of ``tree``."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


def test_a_new_argument_has_an_option_and_a_place_in_the_signature(tmp_path):
    (section,) = [section for section in SECTIONS if section.startswith("A new argument")]
    shutil.copytree(ROOT / "ppsd3", tmp_path / "ppsd3", ignore=shutil.ignore_patterns("__pycache__"))
    apply(blocks(section, "diff")[0], tmp_path)
    shown = run(tmp_path, "-m", "ppsd3", "generate", "--help").stdout
    assert "--denoising-end" in shown and "after which the loop stops" in " ".join(shown.split())
