"""The native kernels against the definitions in Paddle's own operations: outputs and gradients.

The bar is 2e-6 of the largest magnitude, which float32 sums over the lengths used here stay within; Paddle's own
kernels differ from float64 by as much.
"""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.base.framework import _dygraph_tracer, core

from ppsd3.ops import (
    Linear,
    attention as attend,
    dispatch,
    features,
    gated_residual,
    gelu,
    joint_attention,
    layer_norm,
    layer_norm_modulate,
    linear,
    linear_gelu,
    native,
    rms_norm,
    use_kernels,
    use_native,
)
from ppsd3.ops.dispatch import reference

TOLERANCE = 2e-6
pytestmark = pytest.mark.skipif(not native.status()[0], reason="no native kernels here")

# B, S, D: narrower than a vector, a vector and a part, training sizes, one batch item (its tokens are then shared
# between threads), one token
SIZES = [(2, 5, 7), (3, 4, 33), (16, 40, 192), (1, 70, 384), (4, 1, 16)]
# B, queries, keys, h, d: parts of blocks and vectors; several blocks; a width no vector divides
ATTENTIONS = [
    (2, 5, 5, 3, 8),
    (2, 40, 40, 6, 32),
    (1, 200, 333, 2, 64),
    (2, 64, 128, 1, 16),
    (1, 7, 130, 2, 20),
    (1, 50, 600, 1, 24),
    (1, 97, 1030, 2, 64),
    (1, 530, 140, 1, 72),
]


def uniform(seed, shape, scale=1.0):
    return (np.random.RandomState(seed).uniform(-1, 1, shape) * scale).astype("float32")


def run(function, arrays, enabled, frozen=()):
    """Outputs, then the gradients of a random projection of them by the arrays that are not frozen."""
    inputs = [paddle.to_tensor(a, stop_gradient=i in frozen) for i, a in enumerate(arrays)]
    with use_native(enabled):
        outputs = function(*inputs)
        outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
        loss = sum((y * paddle.to_tensor(uniform(99 + i, y.shape))).sum() for i, y in enumerate(outputs))
        loss.backward()
    return [x.numpy() for x in outputs] + [x.grad.numpy() for i, x in enumerate(inputs) if i not in frozen]


def assert_same(ours, theirs, *shapes, scale=1.0, frozen=()):
    arrays = [uniform(i, shape, scale) for i, shape in enumerate(shapes)]
    native_results, results = run(ours, arrays, True, frozen), run(theirs, arrays, False, frozen)
    for x, y in zip(native_results, results):
        assert x.shape == y.shape
        assert np.abs(x - y).max() <= TOLERANCE * max(np.abs(y).max(), 1.0)

    with paddle.no_grad(), use_native(True):  # the path without a recorded gradient
        untracked = ours(*map(paddle.to_tensor, arrays))
    untracked = untracked if isinstance(untracked, (tuple, list)) else [untracked]
    for x, y in zip(untracked, native_results):
        np.testing.assert_array_equal(x.numpy(), y)


@pytest.mark.parametrize("b, s, d", SIZES)
class TestRowKernels:
    def test_layer_norm(self, b, s, d):
        assert_same(layer_norm, reference(layer_norm), (b, s, d))

    def test_layer_norm_modulate(self, b, s, d):
        assert_same(layer_norm_modulate, reference(layer_norm_modulate), (b, s, d), (b, d), (b, d))

    def test_gated_residual(self, b, s, d):
        assert_same(gated_residual, reference(gated_residual), (b, s, d), (b, d), (b, s, d))

    def test_rms_norm(self, b, s, d):
        assert_same(rms_norm, reference(rms_norm), (b, s, 3, d), (d,))

    def test_linear(self, b, s, d):
        assert_same(linear, reference(linear), (b, s, d), (13, d), (13,))

    def test_linear_of_two_axes(self, b, s, d):
        assert_same(linear, reference(linear), (b, d), (5, d), (5,))

    def test_gelu(self, b, s, d):
        # Paddle's own slope is off by 4e-6 against float64, ours by 2e-6: the bar is their sum
        arrays = [uniform(0, (b, s, d), 4.0)]
        for ours, theirs in zip(run(gelu, arrays, True), run(gelu, arrays, False)):
            assert np.abs(ours - theirs).max() <= 6e-6

    def test_linear_gelu(self, b, s, d):
        def fused(x, weight, bias):
            layer = Linear(d, 9)
            layer.weight, layer.bias = as_parameters(layer, weight, bias)
            return linear_gelu(x, layer)

        def in_turn(x, weight, bias):
            return F.gelu(reference(linear)(x, weight, bias), approximate=True)

        arrays = [uniform(i, shape) for i, shape in enumerate([(b, s, d), (9, d), (9,)])]
        for ours, theirs in zip(run(fused, arrays, True), run(in_turn, arrays, False)):
            assert np.abs(ours - theirs).max() <= 6e-6 * max(np.abs(theirs).max(), 1.0)


def as_parameters(layer, weight, bias):
    """Puts tensors of the test where the layer keeps its parameters, so that gradients arrive in them."""
    del layer.weight, layer.bias
    return weight, bias


class TestGelu:
    def test_far_from_zero(self):
        x = paddle.to_tensor([-100.0, -20.0, -5.0, 0.0, 5.0, 100.0, float("inf")])
        np.testing.assert_allclose(gelu(x).numpy()[2:], [-2.2918e-07, 0, 5, 100, np.inf], rtol=1e-3)
        np.testing.assert_array_equal(np.abs(gelu(x).numpy()[:2]) < 1e-30, True)

    def test_nan_stays(self):
        assert np.isnan(gelu(paddle.to_tensor([float("nan"), 1.0])).numpy()).tolist() == [True, False]

    def test_a_layer_with_a_hook_is_called(self):
        layer, seen = Linear(4, 4), []
        layer.register_forward_post_hook(lambda layer, inputs, output: seen.append(output))
        linear_gelu(paddle.randn([2, 4]), layer)
        assert len(seen) == 1


@pytest.fixture(params=["native", "amx"])
def kernel(request):
    """Attention by either kernel, whatever the sizes."""
    if request.param == "amx" and not features.has("amx"):
        pytest.skip(features.missing("amx"))
    with use_kernels(attention=request.param, joint_attention=request.param):
        yield


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("b, queries, keys, h, d", ATTENTIONS)
class TestAttention:
    def test_one_piece(self, b, queries, keys, h, d):
        shapes = (b, queries, h, d), (b, keys, h, d), (b, keys, h, d)
        assert_same(attend, reference(attend), *shapes, scale=2.0)

    def test_two_pieces(self, b, queries, keys, h, d):
        def joint(*x):
            return joint_attention(x[:3], x[3:])

        assert_same(joint, joint, *[(b, queries, h, d)] * 3, *[(b, keys, h, d)] * 3, scale=2.0)


def test_a_query_that_is_not_finite_stays_alone(kernel):
    q, k, v = (uniform(i, (1, 70, 1, 64)) for i in range(3))
    q[0, 3, 0, 5] = np.nan
    with paddle.no_grad():
        result = attend(*map(paddle.to_tensor, (q, k, v))).numpy()
    assert [i for i in range(70) if not np.isfinite(result[0, i]).all()] == [3]


class TestGradients:
    def test_frozen_inputs_get_none(self):
        b, s, d = 2, 5, 8
        for frozen in range(3):
            assert_same(linear, reference(linear), (b, s, d), (4, d), (4,), frozen=(frozen,))
            assert_same(gated_residual, reference(gated_residual), (b, s, d), (b, d), (b, s, d), frozen=(frozen,))
            modulation = (b, s, d), (b, d), (b, d)
            assert_same(layer_norm_modulate, reference(layer_norm_modulate), *modulation, frozen=(frozen,))
            assert_same(attend, reference(attend), *[(b, s, 2, d)] * 3, frozen=(frozen,))

    def test_a_residual_with_other_readers(self):
        """gated_residual hands its gradient on as the residual's: summing there must not change it elsewhere."""

        def network(x, gate, y):
            a, b = gated_residual(x, gate, y), gated_residual(y * 2, gate, x)
            return gated_residual(a, gate, a) + b + layer_norm(a) * x

        assert_same(network, network, (2, 3, 8), (2, 8), (2, 3, 8))

    def test_strided_input(self):
        x = paddle.to_tensor(uniform(0, (2, 8, 5)))
        np.testing.assert_allclose(
            layer_norm(x.transpose([0, 2, 1])).numpy(),
            reference(layer_norm)(x.transpose([0, 2, 1]).contiguous()).numpy(),
            atol=TOLERANCE,
        )


class TestChoice:
    def test_what_the_kernels_cannot_do_is_left_to_paddle(self):
        def level(x):
            return dispatch.choose("layer_norm", x).level

        x = paddle.randn([2, 3])
        assert level(x) == "native"
        assert level(x.astype("float64")) == level(x.astype("bfloat16")) == level(paddle.empty([0, 3])) == "reference"
        with use_native(False):
            assert level(x) == "reference"
            assert native.status() == (False, "turned off by use_kernels('onednn')")
        assert level(x) == "native"

    def test_tensors_of_two_dtypes(self):
        x = paddle.randn([2, 3])
        assert dispatch.choose("rms_norm", x, x[0].astype("float16")).level == "reference"

    def test_amp(self, monkeypatch):
        # set by auto_cast, though not on CPU: a product would come back in half precision
        monkeypatch.setattr(_dygraph_tracer(), "_amp_level", core.AmpLevel.O1)
        assert dispatch.choose("linear", *[paddle.randn([3, 3])] * 2).level == "reference"

    def test_static_graph(self):
        paddle.enable_static()
        try:
            assert dispatch.choose("linear", None, None).level == "reference"
        finally:
            paddle.disable_static()

    @pytest.mark.parametrize("items, heads", [(1, 1), (1, 3), (2, 1), (2, 3)])
    def test_bias_without_gradients_has_a_kernel(self, items, heads, kernel):
        q, k, v = (paddle.to_tensor(uniform(i, (2, length, 3, 20))) for i, length in enumerate((70, 150, 150)))
        bias = paddle.to_tensor(uniform(3, (items, heads, 70, 150)))
        bias[:, :, :, 100:] = -1e30  # hides
        expected = reference(attend)(q, k, v, bias=bias, scale=1.0)
        with paddle.no_grad():
            assert dispatch.choose("attention", q, k, v, bias=bias, scale=1.0).level == "native"
            np.testing.assert_allclose(attend(q, k, v, bias=bias, scale=1.0).numpy(), expected.numpy(), atol=TOLERANCE)

    def test_bias_with_gradients_and_causal_take_the_other_path(self):
        q, k, v = (paddle.to_tensor(uniform(i, (1, 6, 2, 8))) for i in range(3))
        bias = paddle.to_tensor(uniform(3, (1, 2, 6, 6)), stop_gradient=False)
        for options in ({"bias": bias}, {"causal": True}, {"bias": bias, "causal": True}):
            assert dispatch.choose("attention", q, k, v, **options).level == "paddle"
            ours, expected = attend(q, k, v, **options), reference(attend)(q, k, v, **options)
            np.testing.assert_allclose(ours.numpy(), expected.numpy(), atol=TOLERANCE)

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_thread_number_is_paddles(self, threads):
        before = native.lib().ppsd3_threads()
        paddle.base.core.set_num_threads(threads)
        try:
            assert native.lib().ppsd3_threads() == threads
            assert_same(layer_norm_modulate, reference(layer_norm_modulate), (1, 300, 64), (1, 64), (1, 64))
            assert_same(attend, reference(attend), *[(1, 300, 1, 16)] * 3)
            assert_same(attend, reference(attend), *[(1, 600, 1, 32)] * 3)
        finally:
            paddle.base.core.set_num_threads(before)
