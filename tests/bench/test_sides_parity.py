"""The rivals on torch do the same work; and the count of operations is torch's own."""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from ppsd3.bench import flops
from ppsd3.bench.benches import BY_NAME
from ppsd3.bench.sides.torch_based import TorchGemm, TorchSide, load_component, torch_inputs

pytestmark = pytest.mark.parity

TASKS = [name for name in BY_NAME if name not in ("scale", "generate")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return str(tmp_path_factory.mktemp("bench"))


def make(name):
    return next(bench for bench in BY_NAME[name].make(tiny=True) if bench.name == name)


def outputs_of(bench, side, workspace):
    side.setup(workspace)
    if not bench.always_fresh:
        side.warm_up()
    return {name: bench.sample(array) for name, array in side.arrays(side.run())}


@pytest.mark.parametrize("name", TASKS)
def test_the_same_result(name, workspace):
    bench = make(name)
    bench.prepare(workspace)
    sides = [s for s in bench.sides() if isinstance(s, TorchSide) and not s.compiled]
    ours = outputs_of(bench, bench.side("ppsd3"), workspace)
    assert sides
    for side in sides:
        theirs = outputs_of(bench, side, workspace)
        assert theirs.keys() == ours.keys()
        for key, array in theirs.items():
            error = np.linalg.norm(ours[key] - array) / max(np.linalg.norm(array), 1e-30)
            assert error <= min(bench.bars[0], 1e-4), (side.name, key)


def test_roofline(workspace):
    side = TorchGemm("gemm-torch", make("step"))
    side.setup(workspace)
    side.warm_up()


def counted(function):
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        function()
    return counter.get_total_flops()


def test_operations_of_the_transformer(workspace):
    bench = make("step")
    bench.prepare(workspace)
    config, inputs = bench.configuration["transformer"], torch_inputs(bench)
    model = load_component(bench.folder(workspace, "transformer"), "transformer")
    d, batch, tokens = 32, 2, bench.text_tokens
    # diffusers has text queries in the last block, and then no use for what they give
    superfluous = batch * (2 * tokens * d * d + 4 * tokens * (tokens + bench.image_tokens) * d)
    assert counted(lambda: model(**inputs)) == bench.flops() + superfluous
    assert config["num_layers"] == 2


@pytest.mark.parametrize("name", ["vae", "vae-encode"])
def test_operations_of_the_vae(name, workspace):
    bench = make(name)
    bench.prepare(workspace)
    vae = load_component(bench.folder(workspace, "vae"), "vae")
    tensor = torch.from_numpy(bench.vae_input())
    assert counted(lambda: (vae.decoder if name == "vae" else vae.encoder)(tensor)) == bench.flops()


def test_operations_of_the_text_towers(workspace):
    bench = make("text")
    bench.prepare(workspace)
    inputs = torch_inputs(bench)
    for name in bench.components:
        config, length = bench.configuration[name], bench.lengths[name]
        model = load_component(bench.folder(workspace, name), name)
        if name == "text_encoder_3":
            mine = flops.t5(config, length, 2)
        else:  # torch multiplies what the causal mask then hides
            hidden = 2 * 2 * length * length * config["hidden_size"] * config["num_hidden_layers"]
            mine = flops.clip(config, length, 2) + hidden
        assert counted(partial(model, inputs[name])) == mine, name
