"""Loading needs little more memory than the loaded model: measured as the peak resident set, mapped pages included."""

import json
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

MODEL = """
import json, os, re, sys
sys.path.insert(0, sys.argv[1])
import paddle
from ppsd3.configuration_utils import register_to_config
from ppsd3.modeling_utils import ModelMixin
from ppsd3.ops import Linear

class Wide(ModelMixin):
    @register_to_config
    def __init__(self, width=1536, depth=11):
        super().__init__()
        self.blocks = paddle.nn.LayerList([Linear(width, 4 * width) for _ in range(depth)])

def status(key):
    return int(re.search(rf"{key}:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024
"""
SAVE = (
    MODEL
    + """
model = Wide().to(dtype=sys.argv[3])
model.save_pretrained(sys.argv[2], max_shard_size="60MB")
"""
)
LOAD = (
    MODEL
    + """
Wide(width=8, depth=1).to(dtype="float16").to(dtype="float32")  # Paddle loads its kernels
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
model = Wide.from_pretrained(sys.argv[2], paddle_dtype=sys.argv[3])
peak = status("VmHWM") - before
total = float(sum(p.cast("float32").abs().sum() for p in model.blocks[0].parameters()))
needed = sum(int(p.size) * {"float32": 4}.get(str(p.dtype)[7:], 2) for p in model.parameters())
print(json.dumps({"needed": needed, "peak": peak, "total": total}))
"""
)


def run(code, directory, dtype):
    command = [sys.executable, "-W", "ignore", "-c", code, ROOT, str(directory), dtype]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.machine
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's clear_refs")
@pytest.mark.parametrize(
    "saved, wanted", [("float16", "float32"), ("float32", "float16"), ("bfloat16", "float32"), ("float16", "float16")]
)
def test_peak_is_the_models_own_size(tmp_path, saved, wanted):
    run(SAVE, tmp_path, saved)
    assert sum(name.endswith(".safetensors") for name in os.listdir(tmp_path)) > 1
    measured = json.loads(run(LOAD, tmp_path, wanted))
    print(saved, wanted, measured, measured["peak"] / measured["needed"])
    assert measured["total"] > 0
    assert measured["peak"] <= measured["needed"] * 1.15
