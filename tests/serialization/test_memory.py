"""Loading needs little more memory than the loaded model: measured as the peak resident set, mapped pages included."""

import json
import os

import pytest
from helpers.process import HAS_PEAK, PEAK, run

MODEL = """
import json, sys
import paddle
from ppsd3.configuration_utils import register_to_config
from ppsd3.modeling_utils import ModelMixin
from ppsd3.ops import Linear

class Wide(ModelMixin):
    @register_to_config
    def __init__(self, width=1536, depth=11):
        super().__init__()
        self.blocks = paddle.nn.LayerList([Linear(width, 4 * width) for _ in range(depth)])
"""
SAVE = (
    MODEL
    + """
model = Wide().to(dtype=sys.argv[2])
model.save_pretrained(sys.argv[1], max_shard_size="60MB")
"""
)
LOAD = (
    MODEL
    + PEAK
    + """
Wide(width=8, depth=1).to(dtype="float16").to(dtype="float32")  # Paddle loads its kernels
loaded = []
grown = peak(lambda: loaded.append(Wide.from_pretrained(sys.argv[1], paddle_dtype=sys.argv[2])))
(model,) = loaded
total = float(sum(p.cast("float32").abs().sum() for p in model.blocks[0].parameters()))
needed = sum(int(p.size) * {"float32": 4}.get(str(p.dtype)[7:], 2) for p in model.parameters())
print(json.dumps({"needed": needed, "peak": grown, "total": total}))
"""
)


@pytest.mark.slow
@pytest.mark.machine
@pytest.mark.skipif(not HAS_PEAK, reason="needs Linux's clear_refs")
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
