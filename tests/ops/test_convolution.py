"""Native convolutions and group norm against Paddle's own operations: values and gradients, over odd shapes."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from ppsd3.ops import features, native, use_native, vision
from ppsd3.ops.native import convolution as kernels, norms

pytestmark = pytest.mark.skipif(not native.status()[0], reason="the native kernels cannot be built here")

SAME = (1, 1, 1, 1)
PADDING = {(3, 1): SAME, (3, 2): (0, 1, 0, 1), (1, 1): (0, 0, 0, 0)}  # by kernel and stride
# batch, in, out, height, width; whole and broken blocks of channels, vectors of pixels and tasks of rows
SHAPES = [
    (1, 1, 1, 2, 2),
    (2, 3, 16, 13, 9),
    (2, 24, 5, 8, 8),
    (3, 17, 33, 7, 65),
    (1, 33, 19, 64, 31),
    (1, 70, 130, 37, 41),
    (2, 32, 64, 24, 40),
    (1, 65, 40, 9, 100),
]


def random(seed, *shape):
    return paddle.to_tensor(np.random.RandomState(seed).uniform(-1, 1, shape).astype("float32"), stop_gradient=False)


def value_and_gradients(function, inputs):
    for x in inputs:
        x.clear_grad()
    y = function(*inputs)
    y.backward(random(9, *y.shape).detach())
    return [y.numpy(), *(None if x.grad is None else x.grad.numpy() for x in inputs)]


def assert_same(function, reference, inputs):
    ours, expected = value_and_gradients(function, inputs), value_and_gradients(reference, inputs)
    for a, b in zip(ours, expected):
        assert (a is None) == (b is None)
        if a is not None:
            assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.fixture(params=["", "amx_"], ids=["vectors", "tiles"])
def prefix(request):
    """Of the convolutions' names: by either kernel, whatever the sizes."""
    if request.param and not features.has("amx"):
        pytest.skip(features.missing("amx"))
    return request.param


def conv_inputs(shape, kernel):
    batch, channels, out, height, width = shape
    return [random(0, batch, channels, height, width), random(1, out, channels, kernel, kernel), random(2, out)]


@pytest.mark.parametrize("kernel, stride", PADDING)
@pytest.mark.parametrize("shape", SHAPES)
def test_convolution(prefix, shape, kernel, stride):
    inputs, padding = conv_inputs(shape, kernel), PADDING[kernel, stride]
    assert kernels.supports_conv2d(*inputs, None, stride, padding)
    assert_same(
        lambda *x: kernels.conv2d(*x, None, stride, padding, prefix),
        lambda *x: F.conv2d(*x, stride, list(padding)),
        inputs,
    )


@pytest.mark.parametrize("kernel, stride", PADDING)
def test_convolution_with_something_added(prefix, kernel, stride):
    inputs, padding = conv_inputs(SHAPES[5], kernel), PADDING[kernel, stride]
    inputs.append(random(3, 1, 130, 37 // stride, 41 // stride))
    assert_same(
        lambda *x: vision.conv2d(*x, stride, padding),
        lambda *x: F.conv2d(*x[:3], stride, list(padding)) + x[3],
        inputs,
    )
    with paddle.no_grad():
        ours = kernels.conv2d(*inputs, stride, padding, prefix)
    expected = F.conv2d(*inputs[:3], stride, list(padding)) + inputs[3]
    assert np.abs(ours.numpy() - expected.numpy()).max() <= 1e-5 * np.abs(expected.numpy()).max()


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (0, 1), (2,)])
def test_convolution_gives_gradients_only_where_wanted(prefix, frozen):
    inputs = conv_inputs(SHAPES[1], 3)
    for i in frozen:
        inputs[i].stop_gradient = True
    assert_same(lambda *x: kernels.conv2d(*x, None, 1, SAME, prefix), lambda *x: F.conv2d(*x, 1, 1), inputs)


def test_convolution_without_bias_and_of_a_view(prefix):
    x, weight, _ = conv_inputs((2, 4, 6, 9, 16), 3)
    assert_same(
        lambda x, w: kernels.conv2d(x[:, :, :, 3:11], w, None, None, 1, SAME, prefix),
        lambda x, w: F.conv2d(x[:, :, :, 3:11], w, None, 1, 1),
        [x, weight],
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_of_the_upsampled(prefix, shape):
    inputs = conv_inputs(shape, 3)
    assert_same(
        lambda *x: kernels.upsample_conv2d(*x, 1, SAME, prefix),
        lambda x, *rest: F.conv2d(vision.upsample_nearest_2x(x), *rest, 1, 1),
        inputs,
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_convolution_on_any_number_of_threads(prefix, threads):
    before = native.lib().ppsd3_threads()
    paddle.base.core.set_num_threads(threads)
    try:
        inputs = conv_inputs((2, 33, 19, 40, 31), 3)
        assert_same(lambda *x: kernels.conv2d(*x, None, 1, SAME, prefix), lambda *x: F.conv2d(*x, 1, 1), inputs)
    finally:
        paddle.base.core.set_num_threads(before)


def test_other_geometries_are_left_to_others():
    x, weight, _ = conv_inputs((1, 4, 4, 8, 8), 3)
    for stride, padding in ((1, (0, 0, 0, 0)), (2, (1, 1, 1, 1)), (3, (1, 1, 1, 1)), (1, (0, 1, 0, 1))):
        assert not kernels.supports_conv2d(x, weight, None, None, stride, padding)
    assert not kernels.supports_conv2d(x, random(0, 4, 4, 5, 5), None, None, 1, SAME)
    assert not kernels.supports_conv2d(x[:, :, :1], weight, None, None, 2, (0, 1, 0, 1))


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    "shape, groups", [((2, 8, 5, 7), 4), ((3, 6, 1, 2), 2), ((1, 32, 64, 65), 32), ((2, 64, 33, 70), 16)]
)
def test_group_norm(shape, groups, silu):
    def reference(x, weight, bias):
        parts = x.reshape([x.shape[0], groups, -1])
        parts = parts - parts.mean(axis=-1, keepdim=True)
        normal = parts / (parts.square().mean(axis=-1, keepdim=True) + 1e-6).sqrt()
        y = normal.reshape(x.shape) * weight.reshape([1, -1, 1, 1]) + bias.reshape([1, -1, 1, 1])
        return F.silu(y) if silu else y

    inputs = [random(0, *shape), random(1, shape[1]), random(2, shape[1])]
    assert_same(lambda *x: norms.group_norm(*x, groups, 1e-6, silu), reference, inputs)


def test_group_norm_far_from_zero():
    """One pass over the numbers must not cost digits of the variance."""
    x = random(0, 1, 4, 100, 100).detach()
    ones, zeros = paddle.ones([4]), paddle.zeros([4])
    near, far = (norms.group_norm(v, ones, zeros, 2, 1e-6, False).numpy() for v in (x, x + 1024))
    assert np.abs(near - far).max() < 1e-3  # x + 1024 itself is rounded to 6e-5 of 1


def test_layers_agree_with_paddle():
    paddle.seed(0)
    first, second = vision.Conv2D(8, 12, 3, padding=1), vision.Conv2D(12, 5, 3, padding=1)
    norm, x = nn.GroupNorm(4, 12, epsilon=1e-6), random(0, 2, 8, 10, 6)

    def layers(x):
        return second(vision.group_norm_silu(first(x), norm), upsample=True)

    ours = value_and_gradients(layers, [x])
    with use_native(False):
        expected = value_and_gradients(layers, [x])
    for a, b in zip(ours, expected):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
