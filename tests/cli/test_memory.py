"""`ppsd3 info CHECKPOINT`: which ways to hold the networks fit, and what to call."""

from collections import Counter

import paddle
import pytest
from helpers import tiny

import ppsd3
from ppsd3.cli import info, memory
from ppsd3.cli.main import main
from ppsd3.loaders.recognition import Component
from ppsd3.utils import gpu
from ppsd3.utils.gpu import Card


def part(name, millions, quantizable=0, block=50):
    return Component(name, "X", int(millions * 1e6), Counter(), 0, 0, int(quantizable * 1e6), int(block * 1e6))


SD3_MEDIUM = [
    part("transformer", 2085, 2030, 96),
    part("text_encoder", 124),
    part("text_encoder_2", 695),
    part("text_encoder_3", 4762, 4630, 193),
    part("vae", 84),
    part("tokenizer", 0),
]


@pytest.mark.parametrize(
    "gigabytes, calls",
    [
        (24, ["paddle.set_device('gpu:0')", "bfloat16')"]),
        (11, ["paddle.set_device('cpu')", "bfloat16')", "enable_model_cpu_offload(0)"]),
        (10, ["quantize('int8')", "enable_model_cpu_offload(0)"]),
        (4, ["enable_sequential_cpu_offload(0)"]),
        (3, ["enable_sequential_cpu_offload(0)"]),
    ],
)
def test_the_call_for_a_gpu(monkeypatch, gigabytes, calls):
    monkeypatch.setattr(memory, "available_memory", lambda: 64 * 10**9)
    choice = memory.choose(SD3_MEDIUM, memory.places(gigabytes * 10**9), "sd3")
    said = "\n".join(choice.lines)
    assert all(call in said for call in calls), said
    assert ("offload" in said) == (gigabytes < 24) and ("int8" in said) == (gigabytes == 10)
    assert ("enable_vae_tiling" in said) == (gigabytes == 3), said


def test_little_memory_beside_the_gpu_means_on_demand(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 4 * 10**9)
    choice = memory.choose(SD3_MEDIUM, memory.places(14 * 10**9), "sd3")
    assert "load_components='on_demand'" in choice.lines[1] and choice.lines[0] == "paddle.set_device('gpu:0')"


def test_the_call_for_a_cpu_and_for_none(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 16 * 10**9)
    choice = memory.choose(SD3_MEDIUM, memory.places(None), "sd3")
    assert "storage_dtype='float16'" in choice.lines[1] and len(choice.lines) == 2
    monkeypatch.setattr(memory, "available_memory", lambda: 10**9)
    assert memory.choose(SD3_MEDIUM, memory.places(None), "sd3") is None


def test_a_row_for_each_way(monkeypatch, tiny_checkpoint, capsys):
    assert main(["info", str(tiny_checkpoint), "--memory", "12GB"]) == 0
    said = capsys.readouterr().out
    assert "gpu:0 (12.0 GB)" in said and "use on gpu:0" in said
    for way in memory.WAYS:
        assert f", {way.name} " in said or not way.name
    monkeypatch.setattr(gpu, "cards", lambda: [Card(0, "Tesla T4", (7, 5), 16 * 10**9)])
    lines = list(memory.table(SD3_MEDIUM, memory.places(None)))
    assert any("bfloat16" in line and "needs a newer GPU" in line for line in lines)
    assert any(line.startswith("float16, model offload") and "9.5 GB fits" in line for line in lines)


def test_what_int8_takes_is_counted(tiny_checkpoint):
    pipe = tiny.make_pipeline().quantize("int8")
    for name in ("transformer", "text_encoder_3", "vae"):
        network = getattr(pipe, name)
        counted = info.read_component(str(tiny_checkpoint), name, type(network).__name__)
        held = [tensor for tensor in network.state_dict().values() if tensor.dtype == paddle.int8]
        assert counted.quantizable == pytest.approx(sum(int(tensor.size) for tensor in held), rel=0.01), name
        assert 0 < counted.largest_block <= counted.values


@pytest.mark.parametrize("line", memory.WAYS, ids=lambda way: way.name or "as it is")
def test_what_is_said_can_be_called(line, monkeypatch, tiny_checkpoint):
    """But for a device, which is not here."""
    monkeypatch.setattr(memory, "WAYS", (line,))
    monkeypatch.setattr(memory, "available_memory", lambda: 10**12)
    choice = memory.choose(
        [part("transformer", 1), part("vae", 1)], memory.places(10**12 if line.for_gpu else None), "x"
    )
    offload = [call for call in choice.lines if "offload" in call]
    assert (line.loading in choice.lines[1]) and all(
        hasattr(ppsd3.DiffusionPipeline, call[len("pipe.") :].partition("(")[0]) for call in choice.lines[2:]
    )
    assert bool(offload) == ("offload" in line.name)


@pytest.mark.parametrize(
    "arguments, said", [(["--memory", "12GB"], "Name it first"), (["shapes", "--memory", "much"], "--memory='much'")]
)
def test_refusals(arguments, said, capsys):
    assert main(["info", *arguments]) == 2 and said in capsys.readouterr().err
