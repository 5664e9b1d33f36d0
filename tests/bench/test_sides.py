"""Each bench's work, done in this process on tiny networks."""

import numpy as np
import pytest
from helpers.benches import TASKS, make, outputs_of
from helpers.process import run

from ppsd3.bench.benches import BENCHES
from ppsd3.ops import use_native


@pytest.fixture(autouse=True)
def native_again():
    with use_native(True):
        yield


@pytest.mark.parametrize("name", TASKS)
def test_variants_agree(name, workspace):
    bench = make(name)
    bench.prepare(workspace)
    found = {s.name: outputs_of(bench, s, workspace) for s in bench.sides() if s.ours and not s.missing()}
    assert {"ppsd3", "ppsd3-no-compiler"} <= set(found)
    reference = found["ppsd3"]
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in reference.values())
    for side, arrays in found.items():
        assert arrays.keys() == reference.keys()
        for key, array in arrays.items():
            error = np.linalg.norm(array - reference[key]) / np.linalg.norm(reference[key])
            assert error <= bench.bars[bench.side(side).int8], (side, key)


def test_training_changes_the_model(workspace):
    bench = make("train")
    bench.prepare(workspace)
    side = bench.side("ppsd3")
    side.setup(workspace)
    first, second = (dict(side.arrays(side.run()))["loss"] for _ in range(2))
    assert second < first


def test_rooflines_run(workspace):
    sides = [side for side in make("step").rooflines() if side.ours or not side.bare]
    assert [side.name for side in sides] == ["gemm-paddle", "gemm-native"]
    for side in sides:
        side.setup(workspace)
        side.warm_up()


def test_weights_are_the_same_each_time_and_written_once(workspace, tmp_path):
    bench = make("step")
    for place in (workspace, str(tmp_path)):
        bench.prepare(place)
    file = "diffusion_pytorch_model.safetensors"
    paths = [f"{bench.folder(place, 'transformer')}/{file}" for place in (workspace, str(tmp_path))]
    contents = []
    for path in paths:
        with open(path, "rb") as opened:
            contents.append(opened.read())
    assert contents[0] == contents[1]
    with open(paths[0], "wb"):
        pass  # if it were written again it would not stay empty
    bench.prepare(workspace)
    with open(paths[0], "rb") as opened:
        assert opened.read() == b""


def test_what_is_not_there_is_named():
    bench = make("step")
    side = bench.side("ppsd3")
    side.method = ("levitate",)
    assert "pipe.levitate()" in side.missing()
    side = bench.side("openvino-int8")
    side.__class__ = type("Lacking", (type(side),), {"packages": {"a_module_of_nobody": "its-package"}})
    assert side.missing().endswith("-m pip install its-package")


def test_rivals_are_kept_from_paddle():
    for name in BENCHES:
        for bench in BENCHES[name].make(tiny=True, threads=2):
            sides = [*bench.sides(), *bench.rooflines()]
            assert len({side.name for side in sides}) == len(sides)
            assert all(side.bare for side in sides if side.packages)
            assert all(bench.side(side.name).name == side.name for side in sides)


PEAKS = """
import numpy
from ppsd3.bench.sides.base import peak_resident_set
before = peak_resident_set()
numpy.ones(40_000_000)
print(peak_resident_set() - before)
"""


@pytest.mark.machine
def test_the_peak_stays_after_memory_is_freed():
    """In a process of its own: the peak of this one may be far above what it uses now."""
    assert 3.1e8 < int(run(PEAKS)) < 3.5e8
