"""The image kernels: oneDNN's convolution against Paddle's, the exact upsampling, the chunked attention."""

import os
import re
import subprocess
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from ppsd3.ops import dispatch, features, onednn
from ppsd3.ops.vision import Conv2D, attention_channels_first, conv2d, patch_tokens, upsample_nearest_2x

# in channels, out channels, height, width, kernel, stride, padding
GEOMETRIES = [
    (3, 16, 13, 9, 3, 1, (1, 1, 1, 1)),
    (8, 24, 12, 10, 3, 2, (0, 1, 0, 1)),
    (16, 7, 5, 6, 1, 1, (0, 0, 0, 0)),
    (5, 3, 8, 8, 3, 1, (1, 1, 1, 1)),
]
needs_onednn = pytest.mark.skipif(not features.has("onednn"), reason="this Paddle wheel carries no oneDNN 3")


def uniform(*shape):
    return np.random.RandomState(sum(shape)).uniform(-1, 1, shape).astype("float32")


def tensors(geometry):
    in_channels, out_channels, height, width, kernel = geometry[:5]
    shapes = [2, in_channels, height, width], [out_channels, in_channels, kernel, kernel], [out_channels]
    return [paddle.to_tensor(uniform(*shape), stop_gradient=False) for shape in shapes]


def outputs_and_gradients(function, inputs):
    y = function(*inputs)
    y.backward(paddle.to_tensor(uniform(*y.shape)))
    return [y.numpy()] + [None if x.grad is None else x.grad.numpy() for x in inputs]


def assert_close(ours, reference):
    assert np.abs(ours - reference).max() <= 2e-6 * np.abs(reference).max()


@needs_onednn
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_onednn_convolution_and_gradients(geometry):
    stride, padding = geometry[5:]
    ours = outputs_and_gradients(lambda *x: onednn.conv2d(*x, stride, padding), tensors(geometry))
    reference = outputs_and_gradients(lambda *x: F.conv2d(*x, stride, list(padding)), tensors(geometry))
    for a, b in zip(ours, reference):
        assert_close(a, b)


@needs_onednn
@pytest.mark.parametrize("frozen", [(0,), (1, 2), (0, 1), (2,)])
def test_onednn_gives_gradients_only_where_wanted(frozen):
    inputs, reference = tensors(GEOMETRIES[0]), tensors(GEOMETRIES[0])
    for i in frozen:
        inputs[i].stop_gradient = reference[i].stop_gradient = True
    ours = outputs_and_gradients(lambda *x: onednn.conv2d(*x, 1, (1, 1, 1, 1)), inputs)
    expected = outputs_and_gradients(lambda *x: F.conv2d(*x, 1, 1), reference)
    for a, b in zip(ours, expected):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b)


@needs_onednn
def test_onednn_reads_views_and_serves_threads():
    from concurrent.futures import ThreadPoolExecutor

    wide, weight, bias = (x.detach() for x in tensors((6, 4, 9, 16, 3)))
    view = wide[:, :, :, 3:11]
    expected = F.conv2d(view, weight, bias, 1, 1)
    for _ in range(20):
        onednn._plan.cache_clear()  # so that threads meet while they make primitives, and run those of others
        with ThreadPoolExecutor(4) as pool:
            for y in pool.map(lambda _: onednn.conv2d(view, weight, bias, 1, (1, 1, 1, 1)), range(16)):
                assert_close(y.numpy(), expected.numpy())


@needs_onednn
def test_an_unknown_version_of_onednn_is_not_used():
    code = """
import paddle
from ppsd3 import ops
from ppsd3.ops import dispatch, onednn

onednn.KNOWN_VERSIONS = [(9, 0)]
assert dispatch.choose("exact_gelu", paddle.ones([2])).level == "reference"
ops.exact_gelu(paddle.ones([2]))
print("\\n".join(dispatch.summary()))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert re.search(r"exact_gelu.*: reference  \(the numbers of oneDNN 3\.\d are not known: onednn\)", shown.stdout)


def test_other_dtypes_go_to_paddle():
    x, weight, bias = (x.detach().astype("float64") for x in tensors(GEOMETRIES[0]))
    assert dispatch.choose("conv2d", x, weight, bias, None, 1, (1, 1, 1, 1)).level == "reference"
    assert conv2d(x, weight, bias, None, 1, (1, 1, 1, 1)).dtype == paddle.float64


def test_conv2d_layer_is_initialised_as_torch_does():
    layer = Conv2D(8, 64, 3, padding=1)
    bound = (8 * 9) ** -0.5
    for values in (layer.weight.numpy(), layer.bias.numpy()):
        assert 0.8 * bound < np.abs(values).max() <= bound


@pytest.mark.parametrize("width", [3, 128, 130])
def test_upsample_repeats_pixels_exactly(width):
    x = paddle.to_tensor(uniform(2, 3, 5, width), stop_gradient=False)
    y = upsample_nearest_2x(x)
    np.testing.assert_array_equal(y, x.numpy().repeat(2, axis=2).repeat(2, axis=3))
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(x.shape, 4.0))


def test_attention_chunks_give_the_same():
    query, key, value = (paddle.to_tensor(uniform(2, 8, 30) + i) for i in range(3))
    whole = attention_channels_first(query, key, value)
    np.testing.assert_allclose(attention_channels_first(query, key, value, max_scores=2 * 30 * 7), whole, atol=1e-6)


@pytest.mark.parametrize("bias", [None, False])
@pytest.mark.parametrize("size", [(2, 16, 12, 20, 2), (1, 3, 31, 30, 14)])  # the second leaves rows and columns over
def test_patch_tokens_are_the_convolution(size, bias):
    batch, channels, height, width, side = size
    layer = nn.Conv2D(channels, 24, side, stride=side, bias_attr=bias)
    found = []
    for compute in (layer_tokens, patch_tokens):
        x = paddle.to_tensor(uniform(batch, channels, height, width), stop_gradient=False)
        y = compute(x, layer)
        (y * paddle.to_tensor(uniform(*y.shape))).sum().backward()
        found.append([y.numpy(), x.grad.numpy(), layer.weight.grad.numpy()])
        layer.clear_gradients()
    for ours, reference in zip(*reversed(found)):
        np.testing.assert_allclose(ours, reference, atol=2e-5)


def layer_tokens(x, layer):
    return layer(x).flatten(2).transpose([0, 2, 1])


def test_patch_tokens_go_through_what_is_hooked_to_the_layer():
    layer, x = nn.Conv2D(4, 8, 2, stride=2), paddle.to_tensor(uniform(1, 4, 6, 6))
    seen = []
    layer.register_forward_post_hook(lambda layer, inputs, output: seen.append(output.shape))
    assert patch_tokens(x, layer).shape == [1, 9, 8] and seen == [[1, 8, 3, 3]]
