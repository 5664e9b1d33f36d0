"""The GPU report on a device that is no CPU."""

import json

import pytest
from helpers import device

from ppsd3.bench.gpu_report import pictures, write_report
from ppsd3.bench.gpu_report.operations import Form

pytestmark = pytest.mark.device


def test_every_section_but_the_bench(tiny_checkpoint, tmp_path, monkeypatch):
    """One guidance and one cache: the others are tried on the device elsewhere."""
    for name in ("GUIDANCES", "CACHES"):
        monkeypatch.setattr(pictures, name, dict(list(getattr(pictures, name).items())[:1]))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # which a report sets
    path = tmp_path / "report.json"
    forms = {"joint": Form((2, 30, 2, 8)), "T5": Form((2, 8, 2, 8), (1, 2, 8, 8), scale=1.0)}
    report = write_report(path, f"{device.NAME}:0", model=tiny_checkpoint, size=32, steps=1, forms=forms)
    sections = json.loads(path.read_text())["sections"]
    assert report.failed == [], [sections[name] for name in report.failed]
    compared = {name: entry["result"] for name, entry in sections.items() if "rmse" in str(entry["result"])}
    assert {"sequential offload, float32", "model offload, float32", "picture, float32"} < set(compared)
    assert all(result["finite"] and (result["rmse"] < 0.1 or "int8" in name) for name, result in compared.items())
    reads = sections["host reads, float32"]["result"]
    assert reads["per call"] and reads["per step"] == {}
