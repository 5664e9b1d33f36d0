"""The fast ways within Paddle, which serve where there is no compiler, against the definitions."""

import math

import numpy as np
import paddle
import pytest

from ppsd3.ops import (
    AffineLayerNorm,
    attention,
    exact_gelu,
    features,
    gated_residual,
    gelu,
    layer_norm_modulate,
    onednn,
    quick_gelu,
    use_native,
)
from ppsd3.ops.dispatch import kind_of, reference


@pytest.fixture(autouse=True)
def no_kernels():
    with use_native(False):
        yield


def uniform(seed, shape):
    return paddle.to_tensor(np.random.RandomState(seed).uniform(-2, 2, shape).astype("float32"), stop_gradient=False)


def assert_same(ours, theirs, *shapes):
    """Values, and the gradients of a random projection of them."""
    found = []
    for function in (ours, theirs):
        inputs = [uniform(i, shape) for i, shape in enumerate(shapes)]
        y = function(*inputs)
        (y * uniform(99, y.shape).detach()).sum().backward()
        found.append([y, *(x.grad for x in inputs)])
    for x, y in zip(*found):
        np.testing.assert_allclose(x.numpy(), y.numpy(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("b, s, d", [(1, 1, 1), (2, 5, 7), (3, 40, 96), (16, 3, 33)])
class TestModulation:
    def test_layer_norm_modulate(self, b, s, d):
        assert_same(layer_norm_modulate, reference(layer_norm_modulate), (b, s, d), (b, d), (b, d))

    def test_gated_residual(self, b, s, d):
        assert_same(gated_residual, reference(gated_residual), (b, s, d), (b, d), (b, s, d))


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_pass_through_frozen_norms_whole(native, frozen):
    """Paddle's own gradient of a layer norm leaves out a frozen weight, as of a text encoder around its LoRA."""
    weight, bias, projection = (uniform(i, (7,)).detach() for i in (1, 2, 3))
    norm = AffineLayerNorm(7)
    norm.weight.set_value(weight)
    norm.bias.set_value(bias)
    scale, shift = ((v.unsqueeze(0).expand([3, 7]).clone()) for v in (weight - 1, bias))
    norm.weight.stop_gradient = norm.bias.stop_gradient = scale.stop_gradient = frozen
    with use_native(native):
        for function in (norm, lambda x: layer_norm_modulate(x, shift, scale, 1e-5)):
            x = uniform(0, (3, 5, 7))
            (function(x) * projection).sum().backward()
            wanted = uniform(0, (3, 5, 7))
            centred = wanted - wanted.mean(axis=-1, keepdim=True)
            y = centred * (centred.square().mean(axis=-1, keepdim=True) + 1e-5).rsqrt() * weight + bias
            (y * projection).sum().backward()
            np.testing.assert_allclose(x.grad.numpy(), wanted.grad.numpy(), atol=2e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_attention(bias, causal, gradients):
    q, k, v = (uniform(i, (2, 30, 3, 20)) for i in range(3))
    options = {"causal": causal, "bias": uniform(3, (1, 3, 30, 30)) if bias else None}
    with paddle.set_grad_enabled(gradients):
        ours, expected = (f(q, k, v, **options) for f in (attention, reference(attention)))
        np.testing.assert_allclose(ours.numpy(), expected.numpy(), atol=2e-6)
        if gradients:
            found = [paddle.grad(y.square().sum(), [q, k, v]) for y in (ours, expected)]
            for x, y in zip(*found):
                np.testing.assert_allclose(x.numpy(), y.numpy(), atol=2e-5)


ACTIVATIONS = {
    gelu: lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    exact_gelu: lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / 2**0.5)),
    quick_gelu: lambda x: x / (1 + np.exp(-1.702 * x)),
}


@pytest.mark.parametrize("function", ACTIVATIONS, ids=lambda f: f.__name__)
class TestActivations:
    def test_values_with_and_without_gradients(self, function):
        x = uniform(0, (3, 5, 67)) * 5
        expected = ACTIVATIONS[function](x.numpy().astype("float64"))
        for y in (function(x), function(x.detach())):
            np.testing.assert_allclose(y.numpy(), expected, atol=2e-6)
        assert not function(x).stop_gradient

    def test_strided_input_stays_as_it_is(self, function):
        x = uniform(0, (40, 6)).detach().transpose([1, 0])
        before = x.numpy().copy()
        np.testing.assert_allclose(function(x).numpy(), ACTIVATIONS[function](before), atol=2e-6)
        np.testing.assert_array_equal(x.numpy(), before)

    def test_far_from_zero_and_nan(self, function):
        y = function(paddle.to_tensor([-100.0, 100.0, float("nan")])).numpy()
        np.testing.assert_array_equal(y, [0.0, 100.0, np.nan])


@pytest.mark.skipif(not features.has("onednn"), reason="this wheel carries no oneDNN")
class TestSoftmax:
    @pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 130), (2, 3, 4, 33)])
    def test_in_place(self, shape):
        x = uniform(0, shape).detach() * 20
        expected = paddle.nn.functional.softmax(x.astype("float64"), axis=-1)
        assert onednn.softmax_(x) is x
        np.testing.assert_allclose(x.numpy(), expected.numpy(), atol=1e-6)

    def test_rows_hidden_by_very_negative_numbers(self):
        x = paddle.full([2, 8], -1e30)
        x[0, 3] = 1.0
        onednn.softmax_(x)
        np.testing.assert_array_equal(x[0].numpy(), np.eye(8, dtype="float32")[3])
        np.testing.assert_allclose(x[1].numpy(), 1 / 8)

    def test_nan_stays(self):
        x = paddle.to_tensor([[0.0, float("nan"), 1.0], [0.0, 1.0, 2.0]])
        assert np.isnan(onednn.softmax_(x).numpy()).any(axis=1).tolist() == [True, False]


def test_kind_of():
    x = paddle.zeros([2, 3])
    assert kind_of([x, None]) == ("cpu", "float32") and kind_of([x.astype("bfloat16")]) == ("cpu", "bfloat16")
    assert kind_of([x, x.astype("float16")]) == kind_of([paddle.zeros([0, 3])]) == kind_of([None])
    assert kind_of([None])[1] == "open"
    paddle.enable_static()
    try:
        assert kind_of([])[1] == "static graph"
    finally:
        paddle.disable_static()
