"""Which chunk of the conditioning does what: the orders that a checkpoint depends on."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from ppsd3.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, RMSNorm, SD35AdaLayerNormZeroX

D = 8


@pytest.fixture
def inputs():
    paddle.seed(0)
    return paddle.randn([2, 5, D]), paddle.randn([2, D])


def chunks(norm, emb, count):
    """The projected conditioning [B, 1, D], piece by piece."""
    projected = F.linear(F.silu(emb), norm.linear.weight.t(), norm.linear.bias)
    return [chunk.unsqueeze(1) for chunk in projected.split(count, axis=-1)]


def normalized(x):
    x = x.numpy().astype("float64")
    return paddle.to_tensor(
        ((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)).astype("float32")
    )


def close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_zero_has_shift_scale_gate_twice(inputs):
    x, emb = inputs
    norm = AdaLayerNormZero(D)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = chunks(norm, emb, 6)
    result = norm(x, emb=emb)
    close(result.hidden_states, normalized(x) * (1 + scale) + shift)
    for name, expected in dict(gate_msa=gate, shift_mlp=shift_mlp, scale_mlp=scale_mlp, gate_mlp=gate_mlp).items():
        close(getattr(result, name), expected.squeeze(1))
    assert len(result) == 5


def test_dual_has_three_more_at_the_end(inputs):
    x, emb = inputs
    norm = SD35AdaLayerNormZeroX(D)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, shift2, scale2, gate2 = chunks(norm, emb, 9)
    result = norm(x, emb)
    close(result.hidden_states, normalized(x) * (1 + scale) + shift)
    close(result.hidden_states2, normalized(x) * (1 + scale2) + shift2)
    gates = dict(gate_msa=gate, shift_mlp=shift_mlp, scale_mlp=scale_mlp, gate_mlp=gate_mlp, gate_msa2=gate2)
    for name, expected in gates.items():
        close(getattr(result, name), expected.squeeze(1))


def test_continuous_has_scale_before_shift(inputs):
    x, emb = inputs
    norm = AdaLayerNormContinuous(D, D, elementwise_affine=False, eps=1e-6)
    scale, shift = chunks(norm, emb, 2)
    close(norm(x, emb), normalized(x) * (1 + scale) + shift)


def test_rms_norm():
    paddle.seed(0)
    norm, x = RMSNorm(D), paddle.randn([2, 3, 4, D])
    norm.weight.set_value(paddle.randn([D]))
    close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight)
