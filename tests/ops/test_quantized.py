"""int8 linear layers: kernels against the definition, the definition against float32, and who takes which path."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from ppsd3.ops import Linear, QuantizedLinear, features, linear_gelu, native, shared_input, use_kernels, use_native
from ppsd3.ops.dispatch import reference as definition
from ppsd3.ops.quantized import (
    QuantizedActivation,
    _quantize,
    _quantized_product,
    quantize_weight,
    weight_only_linear,
)

needs_kernels = pytest.mark.skipif(not features.has("vnni"), reason="no int8 kernels here")

# rows, in, out: parts of words, tiles, groups and panels; several groups; more than one pass over k; one row
SIZES = [(1, 1, 1), (7, 3, 5), (6, 256, 64), (13, 257, 70), (50, 1030, 130), (9, 4100, 65), (5, 8200, 17), (700, 64, 3)]


def uniform(seed, shape, scale=1.0):
    return paddle.to_tensor((np.random.RandomState(seed).uniform(-1, 1, shape) * scale).astype("float32"))


def layer(n, k, bias=True, seed=1):
    linear = Linear(k, n, bias=bias)
    linear.weight.set_value(uniform(seed, (n, k)))
    return QuantizedLinear.from_linear(linear)


def reference(layer, x):
    return by_definition(x, layer.weight, layer.weight_scale, layer.bias)


def by_definition(x, weight, weight_scale, bias=None):
    """What the integer kernels compute, in Paddle's operations."""
    return definition(_quantized_product)(weight_scale, bias, definition(_quantize)(x), weight)


def relative(x, y):
    return float((x - y).norm() / y.norm())


@pytest.fixture(params=[("vnni", "vnni"), ("amx", "amx_int8")], ids=lambda pair: pair[0])
def kernel(request):
    """Products by either kernel, whatever the number of rows."""
    name, feature = request.param
    if not features.has(feature):
        pytest.skip(features.missing(feature))
    with use_kernels(quantized_product=name):
        yield


@needs_kernels
@pytest.mark.usefixtures("kernel")
class TestKernels:
    @pytest.mark.parametrize("rows, k, n", SIZES)
    @pytest.mark.parametrize("bias", [True, False])
    @paddle.no_grad()
    def test_agree_with_the_definition(self, rows, k, n, bias):
        """To 1e-5 of the largest output, but for the few numbers that lie on a step's edge and round the other way."""
        x, quantized = uniform(0, (rows, k)), layer(n, k, bias)
        ours, expected = quantized(x), reference(quantized, x)
        assert ours.shape == [rows, n]
        edge = float(2 / 255 * quantized.weight_scale.max() * 127)  # one number, one step
        error = (ours - expected).abs()
        assert float(error.max()) <= 1e-5 * float(expected.abs().max()) + 2 * edge
        assert float(error.median()) <= 1e-5 * float(expected.abs().max())

    @pytest.mark.parametrize("rows, k, n", SIZES)
    @paddle.no_grad()
    def test_exact_where_nothing_is_rounded(self, rows, k, n):
        """Whole numbers that use the full range of every group have exact products."""
        x = paddle.randint(0, 256, [rows, k]).astype("float32")
        x[:, ::256], x[:, 1::256] = 0.0, 255.0
        quantized = layer(n, k)
        quantized.weight_scale.set_value(paddle.ones([n]))
        expected = x.numpy().astype("float64") @ quantized.weight.numpy().astype("float64").T + quantized.bias.numpy()
        np.testing.assert_allclose(quantized(x).numpy(), expected, rtol=2e-6, atol=0.5e-6 * np.abs(expected).max())

    @paddle.no_grad()
    def test_leading_axes(self):
        x, quantized = uniform(0, (2, 3, 20)), layer(4, 20)
        y = quantized(x)
        assert y.shape == [2, 3, 4]
        np.testing.assert_array_equal(y.reshape([6, 4]).numpy(), quantized(x.reshape([6, 20])).numpy())

    @paddle.no_grad()
    def test_strided_input(self):
        x, quantized = uniform(0, (2, 20, 5)).transpose([0, 2, 1]), layer(4, 20)
        np.testing.assert_array_equal(quantized(x).numpy(), quantized(x.contiguous()).numpy())

    @pytest.mark.parametrize("rows, k, n", SIZES)
    @paddle.no_grad()
    def test_gelu(self, rows, k, n):
        x, quantized = uniform(0, (rows, k)), layer(n, k)
        expected = F.gelu(quantized(x), approximate=True)
        assert float((linear_gelu(x, quantized) - expected).abs().max()) <= 6e-6 * max(float(expected.max()), 1.0)

    @paddle.no_grad()
    def test_constant_rows_are_exact(self):
        """A range of no width: the offset alone carries the value."""
        quantized = layer(8, 300)
        for value in (0.0, -3.5, 1e-30, 1e30):
            x = paddle.full([2, 300], value)
            expected = weight_only_linear(x, quantized.weight, quantized.weight_scale, quantized.bias)
            np.testing.assert_allclose(quantized(x).numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @paddle.no_grad()
    def test_what_is_not_finite_shows(self, value):
        for place in (0, 5, 299):
            x, quantized = uniform(0, (2, 300)), layer(8, 300)
            x[1, place] = value
            y = quantized(x).numpy()
            assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()

    @pytest.mark.parametrize("threads", [1, 2, 5])
    @paddle.no_grad()
    def test_threads_change_nothing(self, threads):
        x, quantized = uniform(0, (1000, 300)), layer(70, 300)
        before, expected = native.lib().ppsd3_threads(), quantized(x).numpy()
        paddle.base.core.set_num_threads(threads)
        try:
            np.testing.assert_array_equal(quantized(x).numpy(), expected)
        finally:
            paddle.base.core.set_num_threads(before)

    @paddle.no_grad()
    def test_shared_input(self):
        x, layers = uniform(0, (2, 7, 40)), [layer(5, 40, seed=s) for s in range(3)]
        shared = shared_input(x, *layers)
        assert isinstance(shared, QuantizedActivation)
        for quantized in layers:
            np.testing.assert_array_equal(quantized(shared).numpy(), quantized(x).numpy())


class TestAccuracy:
    """Relative error (in norm) of one layer against float32, by the definition and so without kernels too."""

    def error(self, x, weight):
        quantized = by_definition(x, *quantize_weight(weight))
        return relative(quantized, paddle.matmul(x, weight, transpose_y=True))

    def test_gaussian(self):
        assert self.error(paddle.randn([64, 1536]), paddle.randn([64, 1536])) < 0.012

    def test_after_gelu(self):
        """One-sided: no bit is spent on what GELU never gives."""
        assert self.error(F.gelu(paddle.randn([64, 6144])), paddle.randn([64, 6144])) < 0.012

    def test_outlier_features(self):
        """A few features a hundred times the others, as trained transformers have."""
        x = paddle.randn([64, 1536])
        x[:, 100], x[:, 900] = 100.0, -80.0
        weight = paddle.randn([64, 1536])
        weight[:, 100], weight[:, 900] = 0.0, 0.0  # else they are the whole output, and hide the error of the rest
        assert self.error(x, weight) < 0.15
        spread = x / x.abs().max(axis=-1, keepdim=True) * 127  # one range for the whole token
        one_range = relative(paddle.matmul(spread.round(), weight, transpose_y=True),
                             paddle.matmul(spread, weight, transpose_y=True))  # fmt: skip
        assert self.error(x, weight) < 0.7 * one_range

    def test_weight_only_is_nearer(self):
        x, weight = paddle.randn([64, 512]), paddle.randn([64, 512])
        expected = paddle.matmul(x, weight, transpose_y=True)
        assert relative(weight_only_linear(x, *quantize_weight(weight)), expected) < 0.009

    def test_rows_of_zeros(self):
        weight = paddle.randn([3, 8])
        weight[1] = 0.0
        rounded, scale = quantize_weight(weight)
        assert rounded.dtype == paddle.int8 and not rounded.numpy()[1].any() and scale[1] == 0
        assert np.abs(rounded.numpy()).max() == 127


class TestChoice:
    def test_without_kernels_weights_are_multiplied_out(self):
        x, quantized = uniform(0, (5, 40)), layer(6, 40)
        expected = F.linear(x, (quantized.weight.astype("float32") * quantized.weight_scale.unsqueeze(1)).t())
        with use_native(False), paddle.no_grad():
            assert shared_input(x, quantized) is x
            np.testing.assert_allclose(quantized(x).numpy(), (expected + quantized.bias).numpy(), rtol=1e-5, atol=1e-5)
            gelu = F.gelu(quantized(x), approximate=True)
            np.testing.assert_allclose(linear_gelu(x, quantized).numpy(), gelu.numpy(), atol=1e-6)

    def test_gradients_pass_to_input_and_bias(self):
        x, quantized = uniform(0, (5, 40)), layer(6, 40)
        x.stop_gradient = False
        assert shared_input(x, quantized) is x
        quantized(x).sum().backward()
        dense = quantized.weight.astype("float32") * quantized.weight_scale.unsqueeze(1)
        np.testing.assert_allclose(x.grad.numpy(), np.tile(dense.sum(axis=0).numpy(), [5, 1]), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(quantized.bias.grad.numpy(), np.full(6, 5.0))

    @paddle.no_grad()
    def test_layers_with_hooks_see_tensors(self):
        x, quantized, seen = uniform(0, (5, 40)), layer(6, 40), []
        quantized.register_forward_post_hook(lambda layer, inputs, output: seen.append((inputs[0], output)))
        assert shared_input(x, quantized) is x
        linear_gelu(x, quantized)
        assert seen[0][0] is x and seen[0][1].shape == [5, 6]

    @paddle.no_grad()
    def test_plain_layers_keep_their_input(self):
        x = uniform(0, (5, 40))
        assert shared_input(x, layer(6, 40), Linear(40, 6)) is x

    @pytest.mark.parametrize("bias", [True, False])
    @paddle.no_grad()
    def test_concatenated(self, bias):
        x, layers = uniform(0, (5, 40)), [layer(n, 40, bias, seed=n) for n in (3, 70)]
        together = QuantizedLinear.concatenated(layers)
        np.testing.assert_array_equal(together(x).numpy(), paddle.concat([one(x) for one in layers], axis=-1).numpy())
