"""``import ppsd3`` costs next to nothing beyond ``import paddle``."""

import json
import statistics

import pytest
from helpers.process import run

import ppsd3

IMPORT = """
import json, sys, time
import paddle
before, start = set(sys.modules), time.process_time()
import ppsd3
seconds = time.process_time() - start
cheap = sorted(set(sys.modules) - before)
from ppsd3 import *
print(json.dumps({"seconds": seconds, "cheap": cheap, "all": sorted(set(sys.modules) - before)}))
"""
HEAVY = {
    "diffusers", "huggingface_hub", "matplotlib", "paddlenlp", "pandas", "safetensors", "scipy", "sentencepiece",
    "tokenizers", "torch", "transformers",
}  # fmt: skip


@pytest.fixture(scope="module")
def imports():
    return json.loads(run(IMPORT))


@pytest.mark.machine
def test_takes_less_than_a_second():
    """Of processor time, which another program on the machine does not lengthen."""
    assert statistics.median(json.loads(run(IMPORT))["seconds"] for _ in range(3)) < 1.0


def test_loads_hardly_anything(imports):
    ours = {name for name in imports["cheap"] if name.partition(".")[0] == "ppsd3"}
    assert all(name == "ppsd3" or name.startswith("ppsd3.utils") for name in ours), ours
    assert not {name.partition(".")[0] for name in imports["cheap"]} & (HEAVY | {"PIL"})


def test_public_names_load_nothing_heavy(imports):
    assert not {name.partition(".")[0] for name in imports["all"]} & HEAVY


def test_every_public_name_is_there():
    assert set(ppsd3.__all__) <= set(dir(ppsd3))
    for name in ppsd3.__all__:
        assert getattr(ppsd3, name) is not None


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"'StableDiffusion4Pipeline'.*StableDiffusion3Pipeline"):
        _ = ppsd3.StableDiffusion4Pipeline


def test_paddle_is_not_patched():
    """Nothing of Paddle's is another object after the import than before."""
    code = """
import json, types
import paddle
nn = paddle.nn
places = [paddle, paddle.Tensor, nn, nn.Layer, nn.functional, nn.initializer, paddle.optimizer]
snapshot = lambda: [{name: id(value) for name, value in vars(place).items()} for place in places]
before = snapshot()
from ppsd3 import *
print(json.dumps([sorted(n for n in b if n in a and a[n] != b[n]) for b, a in zip(before, snapshot())]))
"""
    assert json.loads(run(code)) == [[]] * 7
