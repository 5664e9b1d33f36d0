"""The step of diffusers' transformer beside which a GPU report has ours."""

import pytest

from ppsd3.bench.configurations import TINY
from ppsd3.bench.gpu_report.speed import TorchFailed, torch_seconds

pytestmark = pytest.mark.parity
TRANSFORMER = {**TINY["transformer"], "num_layers": 1}


def test_a_step_of_torch():
    assert torch_seconds(TRANSFORMER, "float32", 64, False, "cpu") > 0
    with pytest.raises(TorchFailed, match="no_such_argument"):
        torch_seconds({**TRANSFORMER, "no_such_argument": 1}, "float32", 64, False, "cpu")
