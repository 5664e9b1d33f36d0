"""docs/compatibility.md is what comes of the calls of programs for diffusers and ppdiffusers; no error is raw."""

import importlib.util
import pathlib

import pytest
from compat import probes

pytestmark = pytest.mark.docs

DOCS = pathlib.Path(__file__).parent.parent / "docs"
LEAST = {"ppdiffusers": 180, "diffusers": 100}


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_compatibility", DOCS / "make_compatibility.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(maker):
    return maker.outcomes()


@pytest.mark.parametrize("library", probes.LIBRARIES)
def test_there_are_many_and_each_is_one(library):
    codes = [probe.code for section in probes.read(library) for probe in section.probes]
    assert len(codes) >= LEAST[library]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("library", probes.LIBRARIES)
def test_no_error_is_raw(found, library):
    rows = [row for _, rows in found[library] for row in rows]
    assert [(p.code, outcome.message) for p, outcome in rows if outcome.kind == "raw error"] == []


@pytest.mark.parametrize("library", probes.LIBRARIES)
def test_what_is_refused_says_what_to_do(found, library):
    messages = [o.message for _, rows in found[library] for _, o in rows if o.kind == "refused"]
    assert messages and all(message.endswith((".", "?", ".)")) for message in messages), messages


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_current(maker, found, language):
    """Else run ``python docs/make_compatibility.py``."""
    assert maker.PAGES[language].read_text(encoding="utf-8") == maker.page(found, language)


def test_a_raw_error_would_be_seen(tmp_path):
    names = probes.Names(tmp_path)
    outcome = probes.run(probes.Probe("pipe.to(1, 2, 3, nonsense=4); [][0]", None, None), names)
    assert outcome.kind != "works"
    assert probes.run(probes.Probe("[][0]", None, None), names) == probes.Outcome(
        "raw error", "IndexError: list index out of range"
    )
    assert probes.run(probes.Probe("pipe.enable_freeu()", None, None), names).kind == "refused"
    assert probes.run(probes.Probe("pipe.device", None, None), names) == probes.Outcome("works", "")
