"""Memory while single files are loaded and converted: the peak resident set, mapped pages included."""

import json
import os

import pytest
from helpers.process import HAS_PEAK, PEAK, run

BEGIN = f"""
import pathlib, sys
import ppsd3
from helpers.originals import Array, read, scale_to_float8, write
from ppsd3 import SD3Transformer2DModel
directory = pathlib.Path(sys.argv[1])
{PEAK}
"""
MAKE = (
    BEGIN
    + """
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
file = directory / sys.argv[2]
if sys.argv[3] == "load":
    print(peak(lambda: SD3Transformer2DModel.from_single_file(file, paddle_dtype="float32")))
else:
    print(peak(lambda: ppsd3.convert(file, directory / "converted", dtype="float32", max_shard_size="100MB")))
"""
)


@pytest.mark.slow
@pytest.mark.machine
@pytest.mark.skipif(not HAS_PEAK, reason="needs Linux's clear_refs")
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
