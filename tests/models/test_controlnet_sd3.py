"""ControlNets by themselves: what they start as, what they refuse, steps prepared ahead, several at once."""

import numpy as np
import paddle
import pytest
from helpers import golden, tiny

from ppsd3 import SD3ControlNetModel, SD3MultiControlNetModel, SD3Transformer2DModel
from ppsd3.models.controlnet_sd3 import add_residuals
from ppsd3.utils.errors import ConfigError, InputError

JOINT = {**tiny.TRANSFORMER, "num_layers": 2}
WITHOUT_TEXT = {**JOINT, "joint_attention_dim": None, "use_pos_embed": False}
KINDS = {
    "joint": JOINT,
    "dual": {**JOINT, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
    "without text": WITHOUT_TEXT,
}


def make(kind):
    return tiny.fill(SD3ControlNetModel(**KINDS[kind]))


def inputs(kind, rows=2):
    tokens = kind == "without text"
    given = {
        "hidden_states": golden.normal(rows, 16, 32, seed=1) if tokens else golden.normal(rows, 4, 8, 8, seed=1),
        "controlnet_cond": golden.normal(rows, 4, 8, 8, seed=2),
        "encoder_hidden_states": golden.normal(rows, 5, 40, seed=3),
        "pooled_projections": golden.normal(rows, 28, seed=4),
        "timestep": np.full([rows], 700.0, "float32"),
    }
    given = {name: paddle.to_tensor(array) for name, array in given.items()}
    if tokens:
        del given["encoder_hidden_states"]
    return given


def residuals(net, *arguments, **call):
    return [tensor.numpy() for tensor in net(*arguments, **call, return_dict=False)[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_one_adds_nothing(kind):
    net = SD3ControlNetModel(**KINDS[kind])
    found = residuals(net, **inputs(kind))
    assert len(found) == 2 and not any(residual.any() for residual in found)


@pytest.mark.parametrize("kind", KINDS)
def test_prepared_steps_are_the_same(kind):
    net, given = make(kind), inputs(kind)
    with paddle.no_grad():
        expected = residuals(net, **given)
        text = given.pop("encoder_hidden_states", None)
        steps = net.prepare(text, given.pop("pooled_projections"), paddle.to_tensor([900.0, 700.0]))
        given.pop("timestep")
        for mine, other in zip(residuals(net, **given, prepared=steps[1]), expected):
            np.testing.assert_allclose(mine, other, atol=1e-5)


def test_guidance_copies_share_what_they_read():
    net, given = make("joint"), inputs("joint", rows=1)
    text, pooled = (paddle.to_tensor(golden.normal(2, *shape, seed=9)) for shape in ([5, 40], [28]))
    with paddle.no_grad():
        steps = net.prepare(text, pooled, paddle.to_tensor([700.0]))
        both = residuals(net, given["hidden_states"], given["controlnet_cond"], prepared=steps[0])
        for row in range(2):
            parts = dict(encoder_hidden_states=text[row : row + 1], pooled_projections=pooled[row : row + 1])
            alone = residuals(net, **{**given, **parts})
            for mine, other in zip(both, alone):
                np.testing.assert_allclose(mine[row], other[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fused_projections_and_chunks(kind):
    net, given = make(kind), inputs(kind)
    with paddle.no_grad():
        expected = residuals(net, **given)
        for change, undo in (
            (net.fuse_qkv_projections, net.unfuse_qkv_projections),
            (net.enable_forward_chunking, net.disable_forward_chunking),
        ):
            change()
            for mine, other in zip(residuals(net, **given), expected):
                np.testing.assert_allclose(mine, other, atol=1e-5)
            undo()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", [(2, 4, 8, 10), (2, 4, 4, 8), (2, 5, 8, 8), (3, 4, 8, 8), (4, 8, 8), (2, 8, 8, 4)], ids=str
)
def test_guiding_latents_of_another_shape(kind, shape):
    with pytest.raises(InputError, match=r"`controlnet_cond` has the shape \["):
        make(kind)(**{**inputs(kind), "controlnet_cond": paddle.zeros(shape)})


def test_wrong_input():
    joint, without = make("joint"), make("without text")
    with pytest.raises(InputError, match="takes latents"):
        joint(**{**inputs("joint"), "hidden_states": inputs("without text")["hidden_states"]})
    with pytest.raises(InputError, match="pos_embed"):
        without(**{**inputs("without text"), "hidden_states": inputs("joint")["hidden_states"]})
    with pytest.raises(InputError, match="Pass encoder_hidden_states"):
        joint(**{**inputs("joint"), "encoder_hidden_states": None})
    with pytest.raises(InputError, match="encoder_hidden_states out"):
        without(**inputs("without text"), encoder_hidden_states=paddle.zeros([2, 5, 40]))
    with pytest.raises(InputError, match="'unknown'"):
        joint(**inputs("joint"), joint_attention_kwargs={"unknown": 1})
    with pytest.raises(ConfigError, match="qk_norm"):
        SD3ControlNetModel(**{**WITHOUT_TEXT, "qk_norm": "rms_norm"})
    with pytest.raises(ConfigError, match="caption_projection_dim"):
        SD3ControlNetModel(**{**JOINT, "caption_projection_dim": 8})
    with pytest.raises(ConfigError, match="pos_embed_type"):
        SD3ControlNetModel(**{**JOINT, "pos_embed_type": "rope"})


def test_from_transformer():
    transformer = tiny.fill(SD3Transformer2DModel(**tiny.TRANSFORMER))
    net = SD3ControlNetModel.from_transformer(transformer, num_layers=3, num_extra_conditioning_channels=1)
    theirs = transformer.state_dict()
    copied = [name for name, t in net.state_dict().items() if name in theirs and t.shape == theirs[name].shape]
    assert len(copied) > 60
    for name in copied:
        assert np.array_equal(net.state_dict()[name].numpy(), theirs[name].numpy())
    assert net.pos_embed_input.proj.weight.shape[1] == 5 and not net.config.force_zeros_for_pooled_projection
    assert not net.controlnet_blocks[0].weight.numpy().any()
    for wrong in (0, 4):
        with pytest.raises(InputError, match="3 blocks"):
            SD3ControlNetModel.from_transformer(transformer, num_layers=wrong)


def test_gradient_checkpointing():
    for kind in ("joint", "without text"):
        net, given = make(kind), inputs(kind)
        net.train()
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                net.enable_gradient_checkpointing()
            sum(residual.square().mean() for residual in net(**given).controlnet_block_samples).backward()
            gradients.append(net.transformer_blocks[0].attn.to_q.weight.grad.numpy())
            net.clear_gradients()
        assert np.abs(gradients[0]).max() > 0
        np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_several():
    nets = [make("joint"), tiny.randomize(SD3ControlNetModel(**JOINT), 5)]
    many, given = SD3MultiControlNetModel(nets), inputs("joint")
    cond = given.pop("controlnet_cond")
    with paddle.no_grad():
        both = residuals(many, controlnet_cond=[cond, cond], conditioning_scale=[1.0, 0.5], **given)
        first = residuals(nets[0], controlnet_cond=cond, **given)
        second = residuals(nets[1], controlnet_cond=cond, conditioning_scale=0.5, **given)
    for total, one, other in zip(both, first, second):
        np.testing.assert_allclose(total, one + other, atol=1e-5)
    with pytest.raises(InputError, match="1 entries for 2 ControlNets"):
        many(controlnet_cond=[cond], conditioning_scale=[1.0, 0.5], **given)
    for wrong in ([], [nets[0], 3]):
        with pytest.raises(InputError, match="controlnets"):
            SD3MultiControlNetModel(wrong)


def test_lists_of_different_lengths_are_spread_alike():
    """Block i of 12 reads what it would read of each list alone."""
    short, long = [paddle.to_tensor(float(i)) for i in range(2)], [paddle.to_tensor(10.0 * i) for i in range(3)]
    total = add_residuals([short, long])
    for block in range(12):
        alone = float(short[int(block / (12 / 2))]) + float(long[int(block / (12 / 3))])
        assert float(total[int(block / (12 / len(total)))]) == alone


def test_several_saved_and_loaded(tmp_path):
    many = SD3MultiControlNetModel([make("joint"), make("without text")])
    many.save_pretrained(tmp_path / "controlnet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["controlnet", "controlnet_1"]
    again = SD3MultiControlNetModel.from_pretrained(tmp_path, subfolder="controlnet")
    assert [dict(net.config) for net in again.nets] == [dict(net.config) for net in many.nets]
    for name, tensor in many.state_dict().items():
        assert np.array_equal(tensor.numpy(), again.state_dict()[name].numpy())
    SD3MultiControlNetModel(many.nets[:1]).save_pretrained(tmp_path / "controlnet")  # fewer, over these
    assert len(SD3MultiControlNetModel.from_pretrained(tmp_path / "controlnet").nets) == 1
