"""The CLIP text tower: pooling rules, hidden states, causality, configuration, files."""

import json

import numpy as np
import paddle
import pytest

from ppsd3.transformers import CLIPTextModelWithProjection
from ppsd3.utils.errors import ConfigError, InputError

TINY = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "projection_dim": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
}


def tiny(**overrides):
    paddle.seed(0)
    model = CLIPTextModelWithProjection(**{**TINY, **overrides})
    model.eval()
    return model


def pooled_position(model, ids):
    """Index of the token that each row's text_embeds was projected from."""
    out = model(ids)
    projected = model.text_projection(out.last_hidden_state)  # [B, L, P]
    return (projected - out.text_embeds.unsqueeze(1)).abs().sum(-1).argmin(-1).tolist()


def test_shapes_and_names():
    model = tiny()
    out = model(paddle.zeros([2, 10], dtype="int64"), output_hidden_states=True)
    assert out.text_embeds.shape == [2, 24] and out[0] is out.text_embeds
    assert out.last_hidden_state.shape == [2, 10, 32]
    assert [state.shape for state in out.hidden_states] == [[2, 10, 32]] * 4
    assert model(paddle.zeros([2, 10], dtype="int64")).hidden_states is None
    names = set(model.state_dict())
    assert "text_model.embeddings.position_embedding.weight" in names
    assert "text_model.encoder.layers.2.self_attn.out_proj.bias" in names
    assert "text_projection.weight" in names and "text_projection.bias" not in names
    assert len(names) == 2 + 3 * 16 + 2 + 1


def test_pooling_at_the_first_end_token():
    ids = np.array([[5, 7, 60, 60, 99], [5, 60, 99, 99, 99], [60, 7, 8, 9, 10]])
    assert pooled_position(tiny(eos_token_id=60), ids) == [2, 1, 0]


def test_legacy_end_token_2_means_the_first_largest_id():
    ids = np.array([[5, 99, 2, 99, 99], [2, 3, 98, 2, 98], [2, 2, 2, 2, 2]])
    assert pooled_position(tiny(eos_token_id=2), ids) == [1, 2, 0]


def test_hidden_states_are_before_the_final_norm_and_start_with_the_embeddings():
    model = tiny()
    ids = np.arange(8).reshape(1, 8)
    states = model(ids, output_hidden_states=True).hidden_states
    table, positions = model.text_model.embeddings.token_embedding, model.text_model.embeddings.position_embedding
    expected = table.weight[:8] + positions.weight[:8]
    np.testing.assert_allclose(states[0][0].numpy(), expected.numpy(), rtol=1e-6)
    # clip_skip=k reads hidden_states[-(k + 2)]: what a tower with k + 1 layers fewer ends with
    for skip in (0, 1):
        shorter = tiny(num_hidden_layers=TINY["num_hidden_layers"] - 1 - skip)
        kept = shorter.state_dict().keys()
        shorter.set_state_dict({name: value for name, value in model.state_dict().items() if name in kept})
        want = shorter(ids, output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(states[-(skip + 2)].numpy(), want.numpy(), atol=1e-5)


def test_a_token_sees_only_what_is_before_it():
    model = tiny()
    first = np.arange(10).reshape(1, 10)
    second = first.copy()
    second[0, 6:] += 20
    a, b = model(first).last_hidden_state.numpy(), model(second).last_hidden_state.numpy()
    np.testing.assert_allclose(a[:, :6], b[:, :6], atol=1e-6)
    assert np.abs(a[:, 6:] - b[:, 6:]).max() > 1e-2


@pytest.mark.parametrize(
    "ids, words",
    [
        ([[1, 100]], "knows ids 0 to 99"),
        ([[-1, 5]], "knows ids"),
        ([[1] * 17], "max_length=16"),
        ([1, 2, 3], r"\[batch, tokens\]"),
    ],
)
def test_bad_ids(ids, words):
    with pytest.raises(InputError, match=words):
        tiny()(ids)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"num_attention_heads": 5}, "does not divide"),
        ({"hidden_act": "swish2"}, "quick_gelu"),
        ({"eos_token_id": None}, "eos"),
    ],
)
def test_bad_configuration(config, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**config)


def test_dropout_is_refused_rather_than_ignored():
    model = tiny(attention_dropout=0.1)
    model([[1, 2]])
    model.train()
    with pytest.raises(InputError, match="attention_dropout"):
        model([[1, 2]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_weights_on_the_cpu_give_a_clear_error(dtype):
    with pytest.raises(InputError, match="paddle_dtype='float32'"):
        tiny().to(dtype=dtype)([[1, 2]])


def test_gradient_checkpointing_changes_nothing():
    model = tiny()
    model.train()
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.enable_gradient_checkpointing()
        model.clear_gradients()
        model(np.arange(10).reshape(1, 10)).text_embeds.sum().backward()
        gradients.append(model.text_model.encoder.layers[0].mlp.fc1.weight.grad.numpy())
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-7)


def test_files_published_by_old_transformers(tmp_path):
    """Keys that describe the file are accepted, the position buffer is not missed, a misspelt key is an error."""
    model = tiny()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "clip_text_model" and config["torch_dtype"] == "float32"
    assert config["architectures"] == ["CLIPTextModelWithProjection"]
    config.update({"dropout": 0.0, "transformers_version": "4.30.0", "use_cache": True, "dtype": "float32"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with_buffer = {**model.state_dict(), "text_model.embeddings.position_ids": paddle.arange(16).unsqueeze(0)}
    _overwrite_weights(tmp_path, with_buffer)
    loaded = CLIPTextModelWithProjection.from_pretrained(tmp_path)
    ids = np.arange(10).reshape(1, 10)
    np.testing.assert_allclose(loaded(ids).text_embeds.numpy(), model(ids).text_embeds.numpy(), atol=1e-5)

    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hiden_layers": 3}))
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        CLIPTextModelWithProjection.from_pretrained(tmp_path)


def _overwrite_weights(directory, tensors):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({k: v.numpy() for k, v in tensors.items()}, directory / "model.safetensors")
