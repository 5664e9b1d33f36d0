"""Weights held in 16 bits: computed as the rounded weights would be, loaded without being widened, saved so."""

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3 import SD3Transformer2DModel
from ppsd3.ops import CastingLinear, Linear, use_native
from ppsd3.serialization.tensors import cast
from ppsd3.utils.errors import InputError


def tiny_transformer():
    return tiny.make_components(0)["transformer"]


@pytest.fixture
def model():
    return tiny_transformer()


def inputs(model):
    random = np.random.RandomState(0)
    config = model.config
    return {
        "hidden_states": paddle.to_tensor(random.randn(2, config.in_channels, 8, 8).astype("float32")),
        "encoder_hidden_states": paddle.to_tensor(random.randn(2, 5, config.joint_attention_dim).astype("float32")),
        "pooled_projections": paddle.to_tensor(random.randn(2, config.pooled_projection_dim).astype("float32")),
        "timestep": paddle.to_tensor([700.0, 700.0]),
        "return_dict": False,
    }


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_result_is_that_of_the_rounded_weights(model, dtype, native):
    rounded = tiny_transformer()
    for layer in rounded.sublayers():
        if isinstance(layer, Linear):
            layer.weight.set_value(cast(cast(layer.weight.detach(), dtype), "float32"))
    model.enable_layerwise_casting(dtype)
    assert sum(isinstance(layer, CastingLinear) for layer in model.sublayers()) > 10
    with paddle.no_grad(), use_native(native):
        expected, ours = rounded(**inputs(model))[0].numpy(), model(**inputs(model))[0].numpy()
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def test_counts_and_dtype_are_those_of_the_model(model):
    number = model.num_parameters()
    model.enable_layerwise_casting()
    assert model.num_parameters() == number and model.dtype == paddle.float32
    model.to(dtype="float32")
    assert {x.weight.dtype for x in model.sublayers() if isinstance(x, CastingLinear)} == {paddle.float16}


def test_a_file_in_that_dtype_stays_as_it_is(model, tmp_path):
    model.enable_layerwise_casting("float16")
    model.save_pretrained(tmp_path)
    again = SD3Transformer2DModel.from_pretrained(tmp_path, storage_dtype="float16")
    plain = SD3Transformer2DModel.from_pretrained(tmp_path)
    assert not any(isinstance(x, CastingLinear) for x in plain.sublayers())
    with paddle.no_grad():
        first, second, third = (m(**inputs(m))[0].numpy() for m in (model, again, plain))
    assert (first == second).all()
    assert np.abs(first - third).max() <= 1e-5 * np.abs(third).max()


def test_gradient_passes_to_the_input():
    layer = Linear(5, 7)
    x = paddle.randn([3, 5])
    x.stop_gradient = False
    held = CastingLinear(layer.weight.detach().astype("float16"), layer.bias)
    held(x).sum().backward()
    expected = held.weight.astype("float32").sum(axis=0).numpy()
    assert np.abs(x.grad.numpy() - expected).max() < 1e-5
    assert (held.bias.grad.numpy() == 3).all()


def test_refusals(model):
    with pytest.raises(InputError, match="float16 or bfloat16"):
        model.enable_layerwise_casting("float8_e4m3fn")
    with pytest.raises(InputError, match="no linear layers"):
        model.enable_layerwise_casting().enable_layerwise_casting()
    with pytest.raises(InputError, match="int8"):
        tiny_transformer().quantize("int8").enable_layerwise_casting()
