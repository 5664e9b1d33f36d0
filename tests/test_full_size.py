"""SD3-medium's transformer at its true size: memory while loading, and agreement with diffusers. Takes many minutes."""

import importlib.util
import os
import pathlib

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.parity, pytest.mark.machine]

SCRIPT = pathlib.Path(__file__).parent.parent / "examples" / "full_size.py"


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's clear_refs")
def test_full_size(tmp_path):
    for library in ("torch", "diffusers"):
        pytest.importorskip(library)
    spec = importlib.util.spec_from_file_location("full_size", SCRIPT)
    full_size = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(full_size)
    assert full_size.missed(full_size.measure(str(tmp_path))) == []
