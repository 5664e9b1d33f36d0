"""The text towers against transformers: its random weights through our loader, and ours through its loader."""

import numpy as np
import paddle
import pytest

from ppsd3.transformers import CLIPTextModelWithProjection, T5EncoderModel

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
# With a version: without the library, this directory itself would be found as a namespace package of that name.
transformers = pytest.importorskip("transformers", minversion="4.40")

BAR = 1e-5  # largest difference over largest reference value, fp32

CLIP_SIZES = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "projection_dim": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "bos_token_id": 0,
}
CLIP_L = {**CLIP_SIZES, "hidden_act": "quick_gelu", "eos_token_id": 2}
CLIP_G = {**CLIP_SIZES, "hidden_act": "gelu", "eos_token_id": 999}
T5_SIZES = {"vocab_size": 1000, "d_model": 64, "d_kv": 24, "d_ff": 160, "num_layers": 3, "num_heads": 4}


def relative_error(ours, theirs):
    ours, theirs = ours.astype("float32").numpy(), theirs.float().numpy()
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def randomized(model):
    """Initial weights leave biases zero, norms one and position biases small; give each tensor a say."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "relative_attention_bias" in name:
                parameter.normal_()
            else:
                parameter.mul_(2.0)
    return model.eval()


def clip_ids(end, length=77):
    """A full row, a short one, and an empty one, padded with the end token as CLIP-L does."""
    rows = np.random.default_rng(0).integers(3, end, (3, length))
    rows[0, -1] = rows[1, 9:] = rows[2, 1:] = end
    return rows


@pytest.mark.parametrize("config", [CLIP_L, CLIP_G], ids=["clip_l", "clip_g"])
@pytest.mark.parametrize("length", [77, 20])
def test_clip(tmp_path, config, length):
    theirs = randomized(transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config)))
    theirs.save_pretrained(tmp_path)
    ours = CLIPTextModelWithProjection.from_pretrained(tmp_path)
    ids = clip_ids(999, length)
    with torch.no_grad():
        want = theirs(torch.from_numpy(ids), output_hidden_states=True)
    got = ours(paddle.to_tensor(ids), output_hidden_states=True)
    assert relative_error(got.text_embeds, want.text_embeds) <= BAR
    assert relative_error(got.last_hidden_state, want.last_hidden_state) <= BAR
    assert len(got.hidden_states) == len(want.hidden_states) == config["num_hidden_layers"] + 1
    for ours_state, their_state in zip(got.hidden_states, want.hidden_states):
        assert relative_error(ours_state, their_state) <= BAR


@pytest.mark.parametrize("feed_forward_proj", ["gated-gelu", "relu", "gated-silu", "gelu"])
@pytest.mark.parametrize("length", [256, 7])
def test_t5(tmp_path, feed_forward_proj, length):
    config = transformers.T5Config(**T5_SIZES, feed_forward_proj=feed_forward_proj)
    theirs = randomized(transformers.T5EncoderModel(config))
    theirs.save_pretrained(tmp_path)
    ours = T5EncoderModel.from_pretrained(tmp_path)
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 1000, (2, length))
    mask = (np.arange(length)[None] < np.array([[length], [length // 2]])).astype("int64")
    for attention_mask in (None, mask):
        with torch.no_grad():
            torch_mask = None if attention_mask is None else torch.from_numpy(attention_mask)
            want = theirs(torch.from_numpy(ids), attention_mask=torch_mask, output_hidden_states=True)
        got = ours(ids, attention_mask=attention_mask, output_hidden_states=True)
        assert relative_error(got.last_hidden_state, want.last_hidden_state) <= BAR
        assert len(got.hidden_states) == len(want.hidden_states) == T5_SIZES["num_layers"] + 1
        for ours_state, their_state in zip(got.hidden_states, want.hidden_states):
            assert relative_error(ours_state, their_state) <= BAR


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_transformers_reads_what_we_save(tmp_path, name):
    if name == "clip":
        paddle.seed(0)
        ours, ids = CLIPTextModelWithProjection(**CLIP_G), clip_ids(999)
        theirs_class = transformers.CLIPTextModelWithProjection
    else:
        ours = T5EncoderModel(**T5_SIZES, feed_forward_proj="gated-gelu")
        ids, theirs_class = np.random.default_rng(1).integers(0, 1000, (2, 50)), transformers.T5EncoderModel
    ours.eval()
    ours.save_pretrained(tmp_path)
    theirs, report = theirs_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        want = theirs.eval()(torch.from_numpy(ids)).last_hidden_state
    assert relative_error(ours(ids).last_hidden_state, want) <= BAR


def test_relative_position_buckets():
    """Equal integers, edges of the logarithmic ranges included."""
    from transformers.models.t5.modeling_t5 import T5Attention

    from ppsd3.transformers.t5.modeling import relative_position_buckets

    for length, buckets, farthest in ((1, 32, 128), (77, 32, 128), (512, 32, 128), (1100, 32, 128), (64, 8, 20)):
        position = torch.arange(length)
        offset = position[None, :] - position[:, None]
        want = T5Attention._relative_position_bucket(offset, True, buckets, farthest)
        np.testing.assert_array_equal(relative_position_buckets(length, buckets, farthest), want.numpy())
