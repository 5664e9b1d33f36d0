"""The rivals on torch do the same work; and the count of operations is torch's own."""

from functools import partial

import numpy as np
import pytest
from helpers.benches import TASKS, make, outputs_of

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from ppsd3.bench import flops
from ppsd3.bench.sides.torch_based import TorchGemm, TorchSide, load_component, torch_inputs

pytestmark = pytest.mark.parity


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
