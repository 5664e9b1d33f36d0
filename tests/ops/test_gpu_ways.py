"""Fast ways on GPUs against their definitions: each by a stand-in of Paddle's function, which has Paddle's signature
and does what Paddle documents, so that transposes and names of arguments are what they must be."""

import inspect

import numpy as np
import paddle
import pytest
from helpers import gpus
from paddle.incubate.nn import functional as incubated

from ppsd3.ops import dispatch, layer_norm_modulate, linear, linear_gelu, rms_norm
from ppsd3.ops.dispatch import reference
from ppsd3.ops.linear import Linear
from ppsd3.ops.vision import conv2d


def tensor(*shape, seed=0):
    return paddle.to_tensor(np.random.RandomState(seed).standard_normal(shape).astype("float32"))


def fused_matmul_bias(x, y, bias=None, transpose_x=False, transpose_y=False, name=None):
    gpus.require(y.ndim == 2, "Its rank must be 2.")
    product = paddle.matmul(x, y, transpose_x, transpose_y)
    return product if bias is None else product + bias


def fused_linear_activation(x, y, bias, trans_x=False, trans_y=False, activation=None):
    product = fused_matmul_bias(x, y, bias, trans_x, trans_y)
    return paddle.nn.functional.gelu(product, approximate=True) if activation == "gelu" else product


def fused_rms_norm(
    x,
    norm_weight,
    norm_bias,
    epsilon,
    begin_norm_axis=1,
    bias=None,
    residual=None,
    quant_scale=-1,
    quant_round_type=0,
    quant_max_bound=0,
    quant_min_bound=0,
):
    gpus.require(norm_weight.dtype == x.dtype, "the kernel reads its weight in x's dtype")
    gpus.require(norm_weight.shape == x.shape[begin_norm_axis:], "norm_weight")
    mean = x.square().mean(axis=list(range(begin_norm_axis, x.ndim)), keepdim=True)
    return x * (mean + epsilon).rsqrt() * norm_weight, None


STAND_INS = [fused_matmul_bias, fused_linear_activation, fused_rms_norm]


@pytest.mark.parametrize("stand_in", STAND_INS, ids=lambda f: f.__name__)
def test_stand_ins_have_the_signatures_of_this_paddle(stand_in):
    real = inspect.signature(getattr(incubated, stand_in.__name__)).parameters
    assert list(real) == list(inspect.signature(stand_in).parameters)


@pytest.fixture
def card(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        for stand_in in STAND_INS:
            patch.setattr(incubated, stand_in.__name__, stand_in)
        patch.setattr("ppsd3.ops.proving._SLOWER", 1e9)  # of stand-ins, only what they compute is tested
        yield gpus.StandInGPU(patch, tmp_path).__enter__()
    gpus.StandInGPU.forget()


LINEAR = [tensor(2, 5, 24), tensor(16, 24), tensor(16)]
CALLS = {
    "linear": (linear, "fused epilogue", LINEAR),
    "linear, many rows": (linear, "fused epilogue", [tensor(2, 50, 24), *LINEAR[1:]]),
    "linear, odd widths": (linear, "fused epilogue", [tensor(3, 21), tensor(17, 21), tensor(17)]),
    "rms_norm of Q": (rms_norm, "fused", [tensor(2, 5, 3, 8), tensor(8)]),
    "rms_norm of T5": (rms_norm, "fused", [tensor(2, 5, 8), tensor(8), 1e-5]),
    "layer_norm_modulate": (layer_norm_modulate, "by items", [tensor(2, 5, 8), tensor(2, 8), tensor(2, 8, seed=1)]),
}


@pytest.mark.parametrize("call", CALLS)
@paddle.no_grad()
def test_it_is_used_and_computes_what_the_definition_says(card, call):
    function, name, arguments = CALLS[call]
    assert dispatch.choose(function.__name__, *arguments).name == name
    np.testing.assert_allclose(function(*arguments).numpy(), reference(function)(*arguments).numpy(), atol=2e-6)


@paddle.no_grad()
def test_gelu_in_the_epilogue(card):
    layer = Linear(24, 16)
    assert dispatch.choose("linear_gelu", LINEAR[0], layer.weight, layer.bias).name == "fused epilogue"
    expected = paddle.nn.functional.gelu(reference(linear)(LINEAR[0], layer.weight, layer.bias), approximate=True)
    np.testing.assert_allclose(linear_gelu(LINEAR[0], layer).numpy(), expected.numpy(), atol=2e-6)


def test_what_they_do_not_take_is_left_to_the_definition(card):
    x, weight, bias = LINEAR
    with paddle.no_grad():
        assert dispatch.choose("linear", x, weight).name == "reference"
        assert dispatch.choose("rms_norm", tensor(2, 8), tensor(8).astype("float64")).name == "reference"
    weight = weight.clone()
    weight.stop_gradient = False  # training keeps Paddle's own gradients
    assert dispatch.choose("linear", x, weight, bias).name == "reference"


@pytest.mark.parametrize("wrong", [{"transpose_y": False}, {"bias": None}])
@paddle.no_grad()
def test_a_kernel_that_errs_is_found(card, monkeypatch, wrong):
    monkeypatch.setattr(
        incubated, "fused_matmul_bias", lambda x, y, bias, **k: fused_matmul_bias(x, y, **{"bias": bias, **k, **wrong})
    )
    square = [tensor(2, 24), tensor(24, 24), tensor(24)]
    assert dispatch.choose("linear", *square).name == "reference"


@paddle.no_grad()
def test_cudnn_searches_for_sizes_that_come_again(card, monkeypatch):
    seen, real = [], paddle.nn.functional.conv2d
    known = gpus.StandInGPU.flags(monkeypatch, FLAGS_cudnn_exhaustive_search=False)

    def conv(*arguments):
        seen.append(known["FLAGS_cudnn_exhaustive_search"])
        return real(*arguments)

    monkeypatch.setattr(paddle.nn.functional, "conv2d", conv)
    arguments = [tensor(1, 4, 9, 9), tensor(8, 4, 3, 3), tensor(8), None, 1, (1, 1, 1, 1)]
    first, second = conv2d(*arguments), conv2d(*arguments)
    assert seen[-1] is True and known == {"FLAGS_cudnn_exhaustive_search": False}
    assert (first == second).all() and seen.index(True) > 0
    conv2d(tensor(1, 4, 11, 9), *arguments[1:])  # other sizes
    assert seen[-1] is False
