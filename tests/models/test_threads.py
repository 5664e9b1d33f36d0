"""A call changes nothing of a network: calls that differ run at once on one transformer, each as if it were alone."""

import threading

import numpy as np
import paddle
import pytest
from helpers import golden, loras, tiny

from ppsd3.adapters.network import LoraConfig, add_adapter
from ppsd3.models import SD3Transformer2DModel
from ppsd3.models.attention_processor import perturbed

BLOCKS = 4


@pytest.fixture(scope="module")
def model():
    """SD3.5-medium in small, with a LoRA that changes something."""
    model = tiny.fill(SD3Transformer2DModel(**{**tiny.TRANSFORMER, **tiny.SD35, "num_layers": BLOCKS}))
    add_adapter(model, LoraConfig(r=2))
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.set_value(paddle.to_tensor(loras.normal(rng, *parameter.shape)))
    model.eval()
    return model


def inputs(model):
    arrays = golden.transformer_inputs(model.config, (8, 12))
    return {name: paddle.to_tensor(array) for name, array in arrays.items()}


def weakened(model):
    """Processors of perturbed-attention guidance for block 1."""
    return {name: perturbed(own) for name, own in model.attn_processors.items() if "blocks.1." in name}


CALLS = {
    "scale 0.5": lambda model: {"joint_attention_kwargs": {"scale": 0.5}},
    "scale 2": lambda model: {"joint_attention_kwargs": {"scale": 2.0}},
    "scale 1": lambda model: {},
    "perturbed": lambda model: {"attn_processors": weakened(model)},
}


def velocity(model, name, between=lambda: None):
    def run_blocks(blocks, image, text):
        for block in blocks:
            between()
            text, image = block(image, text)
        return image

    with paddle.no_grad():
        return model(**inputs(model), **CALLS[name](model), run_blocks=run_blocks).sample.numpy()


def test_calls_at_once_are_as_alone(model):
    alone = {name: velocity(model, name) for name in CALLS}
    for name in set(CALLS) - {"scale 1"}:
        assert np.abs(alone[name] - alone["scale 1"]).max() > 1e-4, name

    barrier, found = threading.Barrier(len(CALLS), timeout=60), {}  # all of them go from block to block together

    def call(name):
        for _ in range(3):
            found.setdefault(name, []).append(velocity(model, name, barrier.wait))

    threads = [threading.Thread(target=call, args=(name,)) for name in CALLS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, expected in alone.items():
        assert len(found[name]) == 3
        for again in found[name]:
            np.testing.assert_array_equal(again, expected, err_msg=name)


def test_processors_of_a_call_act_as_set_ones(model):
    found = velocity(model, "perturbed")
    own = model.attn_processors
    model.set_attn_processor({**own, **weakened(model)})
    expected = velocity(model, "scale 1")
    model.set_attn_processor(own)
    np.testing.assert_array_equal(found, expected)
    assert model.attn_processors == own


def test_gradient_checkpointing_keeps_the_scale_of_the_call(model):
    def gradients():
        model.clear_gradients()
        model(**inputs(model), **CALLS["scale 0.5"](model)).sample.square().mean().backward()
        return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}

    model.train()
    expected = gradients()
    model.enable_gradient_checkpointing()
    found = gradients()
    model.disable_gradient_checkpointing()
    model.eval()
    assert set(found) == set(expected) and any("lora_B" in name for name in found)
    for name, gradient in expected.items():
        assert np.abs(found[name] - gradient).max() <= 5e-5 * np.abs(gradient).max(), name
