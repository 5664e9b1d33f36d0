"""Memory while single files are loaded and converted: the peak resident set, mapped pages included."""

import json
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

BEGIN = """
import json, re, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
import numpy as np, paddle, ppsd3
from helpers.originals import Array, read, scale_to_float8, write
from ppsd3 import SD3Transformer2DModel

def status(key):
    return int(re.search(rf"{key}:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024

def peak(function):
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    kept = function()
    return status("VmHWM") - before
"""
MAKE = (
    BEGIN
    + """
import pathlib
directory = pathlib.Path(sys.argv[2])
model = SD3Transformer2DModel(num_layers=2, num_attention_heads=16, caption_projection_dim=1024)
model.to(dtype="float16").save_pretrained(directory / "diffusers")
ppsd3.convert(directory / "diffusers", directory / "half.safetensors")
tensors = {name: Array(value.array.astype("float32")) for name, value in read(directory / "half.safetensors").items()}
written, _ = scale_to_float8(tensors, "model.diffusion_model.")
write(directory / "float8.safetensors", written)
"""
)
MEASURE = (
    BEGIN
    + """
SD3Transformer2DModel(num_layers=1, num_attention_heads=1, caption_projection_dim=64)
file, needed = sys.argv[2] + "/" + sys.argv[3], 0
if sys.argv[4] == "load":
    measured = peak(lambda: SD3Transformer2DModel.from_single_file(file, paddle_dtype="float32"))
else:
    measured = peak(lambda: ppsd3.convert(file, sys.argv[2] + "/converted", dtype="float32", max_shard_size="100MB"))
print(measured)
"""
)


def run(code, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", code, ROOT, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.machine
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's clear_refs")
def test_peaks(tmp_path):
    run(MAKE, tmp_path)
    values = os.path.getsize(tmp_path / "half.safetensors") // 2
    largest = 4 * 6 * 1024**2  # bytes of the adaLN modulation in float32
    measured = {
        (file, what): int(run(MEASURE, tmp_path, file, what))
        for file in ("half.safetensors", "float8.safetensors")
        for what in ("load", "convert")
    }
    print(json.dumps({" ".join(key): round(value / 2**20) for key, value in measured.items()}), values * 4 / 2**20)
    for (_, what), peak in measured.items():
        assert peak <= (1.1 * 4 * values if what == "load" else 0) + 4 * largest, what
