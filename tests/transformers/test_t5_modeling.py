"""The T5 encoder: shapes, shared position bias, fp32 islands, padding mask, files."""

import json

import numpy as np
import paddle
import pytest

from ppsd3.serialization.tensors import put
from ppsd3.transformers import T5EncoderModel
from ppsd3.transformers.t5 import modeling
from ppsd3.utils.errors import ConfigError, InputError

TINY = {
    "vocab_size": 100,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}
IDS = np.arange(20).reshape(2, 10)


def tiny(**overrides):
    paddle.seed(0)
    model = T5EncoderModel(**{**TINY, **overrides})
    model.eval()
    return model


def test_shapes_and_names():
    model = tiny()
    out = model(IDS, output_hidden_states=True)
    assert out.last_hidden_state.shape == [2, 10, 32] and out[0] is out.last_hidden_state
    assert len(out.hidden_states) == 3 and out.hidden_states[-1] is out.last_hidden_state
    assert model(IDS).hidden_states is None
    names = set(model.state_dict())
    assert "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" in names
    assert "encoder.block.1.layer.1.DenseReluDense.wi_1.weight" in names
    assert len(names) == 1 + 1 + 2 * (4 + 1 + 3 + 1) + 1
    assert "encoder.block.0.layer.1.DenseReluDense.wi.weight" in tiny(feed_forward_proj="relu").state_dict()


def test_the_position_bias_is_computed_once_per_call(monkeypatch):
    calls = []
    original = modeling.relative_position_buckets
    monkeypatch.setattr(modeling, "relative_position_buckets", lambda *a: calls.append(a) or original(*a))
    tiny()(IDS)
    assert calls == [(10, 32, 128)]


def test_position_matters_and_order_is_only_known_through_the_bias():
    model = tiny()
    ids = np.array([[1, 2, 3, 4], [4, 3, 2, 1]])
    out = model(ids).last_hidden_state.numpy()
    assert np.abs(out[0] - out[1][::-1]).max() > 1e-4
    table = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    table.set_value(paddle.zeros_like(table))
    out = model(ids).last_hidden_state.numpy()
    np.testing.assert_allclose(out[0], out[1][::-1], atol=1e-5)


def test_masked_tokens_have_no_influence():
    model = tiny()
    mask = np.array([[1] * 6 + [0] * 4] * 2)
    other = IDS.copy()
    other[:, 6:] += 50
    a = model(IDS, attention_mask=mask).last_hidden_state.numpy()[:, :6]
    b = model(other, attention_mask=mask).last_hidden_state.numpy()[:, :6]
    np.testing.assert_allclose(a, b, atol=1e-6)
    short = model(IDS[:, :6]).last_hidden_state.numpy()
    np.testing.assert_allclose(a, short, atol=1e-5)
    assert np.abs(model(IDS).last_hidden_state.numpy()[:, :6] - short).max() > 1e-4
    with pytest.raises(InputError, match="attention_mask has shape"):
        model(IDS, attention_mask=mask[:, :5])


def test_fp32_islands():
    """The CPU has no 16-bit matmul: float64 with float32 output projections stands in for float16 with float32."""
    model = tiny()
    want = model(IDS).last_hidden_state.numpy()
    for name, parameter in model.named_parameters():
        if ".wo." not in name:
            put(parameter, parameter.detach().astype("float64"))
    out = model(IDS, output_hidden_states=True)
    assert out.last_hidden_state.dtype == paddle.float64  # the norm's weight decides
    assert out.hidden_states[0].dtype == paddle.float64 and out.hidden_states[1].dtype == paddle.float32
    np.testing.assert_allclose(out.last_hidden_state.numpy(), want, atol=1e-5)


def test_only_float16_keeps_islands(tmp_path):
    tiny().save_pretrained(tmp_path)
    for dtype, island in (("float16", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")):
        model = T5EncoderModel.from_pretrained(tmp_path, paddle_dtype=dtype)
        layer = model.encoder.block[1].layer[1]
        assert str(layer.DenseReluDense.wo.weight.dtype).endswith(f".{island}")
        assert str(layer.DenseReluDense.wi_0.weight.dtype).endswith(f".{dtype}")
        assert str(model.dtype).endswith(f".{dtype}")
        if dtype != "float32":
            with pytest.raises(InputError, match="paddle_dtype='float32'"):
                model(IDS)


def test_the_norm_does_not_overflow_and_takes_its_weights_dtype():
    norm = modeling._RMSNorm(8, 1e-6)
    out = norm(paddle.full([1, 8], 60000.0).astype("float16"))  # its square is beyond float16
    assert out.dtype == paddle.float32
    np.testing.assert_allclose(out.numpy(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", ["tanh-gelu", "gated-gated-gelu", "gated-", "swish2"])
def test_bad_feed_forward(name):
    with pytest.raises(ConfigError, match="feed_forward_proj"):
        tiny(feed_forward_proj=name)


def test_bad_ids():
    with pytest.raises(InputError, match="T5EncoderModel knows ids 0 to 99"):
        tiny()([[1, 32000]])


@pytest.mark.parametrize("held", [["shared.weight"], ["encoder.embed_tokens.weight"], None])
def test_the_embedding_under_either_name_and_beside_a_decoder(tmp_path, held):
    safetensors = pytest.importorskip("safetensors.numpy")
    model = tiny()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "t5"
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    table = tensors.pop("shared.weight")
    tensors.update(dict.fromkeys(held or ["shared.weight", "encoder.embed_tokens.weight"], table))
    tensors["decoder.block.0.layer.0.layer_norm.weight"] = table[0]
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    loaded = T5EncoderModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(loaded(IDS)[0].numpy(), model(IDS)[0].numpy(), atol=1e-5)


def test_dropout_and_gradient_checkpointing():
    model = tiny(dropout_rate=0.5)
    model.train()
    assert np.abs(model(IDS)[0].numpy() - model(IDS)[0].numpy()).max() > 0
    model = tiny(dropout_rate=0.0)
    model.train()
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.enable_gradient_checkpointing()
        model.clear_gradients()
        model(IDS)[0].square().mean().backward()
        table = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        gradients.append((table.grad.numpy(), model.encoder.block[0].layer[1].DenseReluDense.wo.weight.grad.numpy()))
    for plain, recomputed in zip(*gradients):
        assert np.abs(plain).max() > 0
        np.testing.assert_allclose(plain, recomputed, rtol=1e-4, atol=1e-8)
