"""SD3Transformer2DModel by itself: arguments, seams, switches that change nothing but cost, and errors."""

import inspect

import numpy as np
import paddle
import pytest
from helpers import golden, tiny

from ppsd3.models import SD3Transformer2DModel
from ppsd3.models.attention import FeedForward, JointTransformerBlock
from ppsd3.models.attention_processor import JointAttnProcessor2_5
from ppsd3.models.normalization import AdaLayerNormContinuous
from ppsd3.models.transformer_sd3 import unpatchify
from ppsd3.utils.errors import ConfigError, InputError

MEDIUM = {**tiny.SD35, "num_layers": 4}  # SD3.5-medium in small: every part that a model can have
ROUNDING = 5e-6  # of the largest value: the same sums in another order
D = tiny.TRANSFORMER["num_attention_heads"] * tiny.TRANSFORMER["attention_head_dim"]


def make(**changes):
    return tiny.fill(SD3Transformer2DModel(**{**tiny.TRANSFORMER, **changes}))


def inputs(model, grid=(8, 12)):
    return {name: paddle.to_tensor(array) for name, array in golden.transformer_inputs(model.config, grid).items()}


def run(model, grid=(8, 12), **call):
    with paddle.no_grad():
        return model(**inputs(model, grid), **call).sample.numpy()


@pytest.fixture(scope="module")
def medium():
    return make(**MEDIUM)


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# Arguments of the constructor.


def test_every_argument_is_tested():
    arguments = set(inspect.signature(SD3Transformer2DModel.__init__).parameters) - {"self"}
    assert arguments == set(tiny.TRANSFORMER) | set(tiny.SD35)


@pytest.mark.parametrize(
    "change, name, shape",
    [
        ({"patch_size": 4}, "pos_embed.proj.weight", (D, 4, 4, 4)),
        ({"patch_size": 4}, "proj_out.weight", (4 * 4 * 4, D)),
        ({"in_channels": 9}, "pos_embed.proj.weight", (D, 9, 2, 2)),
        ({"in_channels": 9}, "proj_out.weight", (2 * 2 * 4, D)),
        ({"out_channels": None, "in_channels": 9}, "proj_out.weight", (2 * 2 * 9, D)),
        ({"out_channels": 5}, "proj_out.bias", (2 * 2 * 5,)),
        ({"num_layers": 1}, "transformer_blocks.0.norm1_context.linear.weight", (2 * D, D)),
        ({"num_layers": 4}, "transformer_blocks.2.norm1_context.linear.weight", (6 * D, D)),
        ({"num_attention_heads": 2, "attention_head_dim": 16, "qk_norm": "rms_norm"},
         "transformer_blocks.1.attn.norm_added_k.weight", (16,)),
        ({"joint_attention_dim": 24}, "context_embedder.weight", (D, 24)),
        ({"num_attention_heads": 2, "caption_projection_dim": 16}, "context_embedder.bias", (16,)),
        ({"pooled_projection_dim": 20}, "time_text_embed.text_embedder.linear_1.weight", (D, 20)),
        ({"pos_embed_max_size": 30}, "pos_embed.pos_embed", (1, 900, D)),
        ({"dual_attention_layers": (1,)}, "transformer_blocks.1.norm1.linear.weight", (9 * D, D)),
        ({"dual_attention_layers": (1,)}, "transformer_blocks.1.attn2.to_out.0.weight", (D, D)),
        ({"dual_attention_layers": (1,)}, "transformer_blocks.0.norm1.linear.weight", (6 * D, D)),
        ({"dual_attention_layers": (1,), "qk_norm": "rms_norm"}, "transformer_blocks.1.attn2.norm_q.weight", (8,)),
    ],
)  # fmt: skip
def test_arguments(change, name, shape):
    model = make(**change)
    assert shapes(model)[name] == shape
    assert all(model.config[key] == value for key, value in change.items())
    assert run(model).shape == (2, model.out_channels, 8, 12)


def test_sample_size_scales_the_positions():
    small, large = make(sample_size=16), make(sample_size=32)
    assert shapes(small) == shapes(large)
    tables = (model.pos_embed.pos_embed.reshape([24, 24, D]) for model in (small, large))
    np.testing.assert_allclose(next(tables)[::2, ::2], next(tables)[:12, :12], atol=1e-6)  # steps twice as wide


def test_only_what_a_model_has_is_stored(medium):
    names = set(shapes(medium))
    assert not any(
        "attn2" in name for name in names if name.startswith(("transformer_blocks.2", "transformer_blocks.3"))
    )
    assert not any("norm_q" in name for name in shapes(make()))
    last = {name.split(".", 2)[2] for name in names if name.startswith("transformer_blocks.3.")}
    assert not any(name.startswith(("ff_context", "attn.to_add_out")) for name in last)
    assert any(name.startswith("attn.add_q_proj") for name in last)  # published files have it, though nothing uses it


def test_unknown_qk_norm():
    with pytest.raises(ConfigError, match=r"'layer_norm'.*'rms_norm'"):
        make(qk_norm="layer_norm")


def test_caption_width_must_be_the_models():
    with pytest.raises(ConfigError, match=r"caption_projection_dim is 16.*32"):
        make(caption_projection_dim=16)


# Calling.


def test_output_forms(medium):
    arguments = inputs(medium)
    output = medium(**arguments)
    assert output[0] is output.sample
    as_tuple = medium(**arguments, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 1
    np.testing.assert_array_equal(as_tuple[0], output.sample)


@pytest.mark.parametrize("grid", [(8, 8), (24, 24), (48, 2), (2, 2), (6, 30)])
def test_any_grid_within_the_table(medium, grid):
    output = run(medium, grid)
    assert output.shape == (2, 4, *grid)
    assert np.isfinite(output).all()


def test_every_input_matters(medium):
    arguments = inputs(medium)
    expected = medium(**arguments).sample.numpy()
    for name, value in arguments.items():
        changed = medium(**{**arguments, name: value * 0.9}).sample.numpy()
        assert np.abs(changed - expected).max() > 1e-4, name


def test_rows_of_a_batch_do_not_mix(medium):
    arguments = inputs(medium)
    alone = medium(**{name: value[1:] for name, value in arguments.items()}).sample
    assert golden.difference(run(medium)[1:], alone.numpy()) <= ROUNDING


def test_timesteps_may_be_integers(medium):
    arguments = {**inputs(medium), "timestep": paddle.to_tensor([987, 30])}
    as_float = {**arguments, "timestep": paddle.to_tensor([987.0, 30.0])}
    np.testing.assert_array_equal(medium(**arguments).sample, medium(**as_float).sample)


def test_too_large_picture(medium):
    with pytest.raises(InputError, match=r"50 x 12 needs 25 x 6 patches.*24 x 24.*smaller"):
        run(medium, (50, 12))


def test_wrong_channels(medium):
    with pytest.raises(InputError, match="5 channels, the transformer takes 4"):
        medium(**{**inputs(medium), "hidden_states": paddle.zeros([2, 5, 8, 12])})


def test_unpatchify_undoes_patches():
    p, rows, columns, channels = 2, 3, 5, 4
    picture = golden.normal(2, channels, rows * p, columns * p)
    patches = picture.reshape(2, channels, rows, p, columns, p).transpose(0, 2, 4, 3, 5, 1)  # B rows columns p p C
    tokens = paddle.to_tensor(patches.reshape(2, rows * columns, -1))
    np.testing.assert_array_equal(unpatchify(tokens, rows, columns, p), picture)


# Blocks.


def block(**changes):
    arguments = dict(dim=D, num_attention_heads=4, attention_head_dim=8)
    return tiny.fill(JointTransformerBlock(**{**arguments, **changes}))


def streams():
    return [paddle.to_tensor(golden.normal(*shape, seed=i)) for i, shape in enumerate([(2, 6, D), (2, 3, D), (2, D)])]


@pytest.mark.parametrize("dual", [False, True])
def test_block_returns_text_first(dual):
    image, text, temb = streams()
    new_text, new_image = block(use_dual_attention=dual)(image, text, temb)
    assert new_text.shape == text.shape and new_image.shape == image.shape


def test_last_block_ends_the_text():
    image, text, temb = streams()
    last = block(context_pre_only=True)
    assert isinstance(last.norm1_context, AdaLayerNormContinuous)
    assert last.ff_context is None and last.attn.to_add_out is None
    no_text, new_image = last(image, text, temb)
    assert no_text is None and new_image.shape == image.shape
    other_image = last(image, text.flip(-1), temb)[1]
    assert float((other_image - new_image).abs().max()) > 1e-4  # text still serves the attention


def test_feed_forward_is_tanh_gelu_between_two_layers():
    layer = tiny.fill(FeedForward(D))
    x = streams()[0]
    inner = paddle.nn.functional.gelu(layer.net[0].proj(x), approximate=True)
    assert inner.shape == [2, 6, 4 * D]
    np.testing.assert_allclose(layer(x), layer.net[2](inner), atol=1e-5)


# Skipped layers and ControlNet residuals.


def test_skip_layers(medium):
    expected = run(medium)
    np.testing.assert_array_equal(run(medium, skip_layers=[]), expected)
    results = [run(medium, skip_layers=skipped) for skipped in ([0], [2], [0, 2], [3])]
    for i, result in enumerate(results):
        assert all(np.abs(result - other).max() > 1e-4 for other in [expected, *results[:i]])
    np.testing.assert_array_equal(run(medium, skip_layers=(2, 0)), results[2])


@pytest.mark.parametrize("wrong", [[4], [-1], [0, 17]])
def test_skip_layers_out_of_range(medium, wrong):
    with pytest.raises(InputError, match=rf"skip_layers.*{wrong[-1]}.*blocks 0 to 3"):
        run(medium, skip_layers=wrong)


@pytest.mark.parametrize(
    "count, added", [(1, [0, 0, 0]), (2, [0, 0, 1]), (3, [0, 0, 1]), (4, [0, 1, 2]), (8, [0, 2, 4])]
)
def test_residuals_are_spread_over_all_blocks_but_the_last(medium, count, added):
    arguments, every_block = inputs(medium), range(4)
    residuals = [paddle.to_tensor(golden.normal(2, 4 * 6, D, seed=10 + i)) for i in range(count)]
    with paddle.no_grad():  # without the blocks, only what is added between them is left
        result = medium(**arguments, block_controlnet_hidden_states=residuals, skip_layers=every_block).sample
        tokens = medium.pos_embed(arguments["hidden_states"]) + sum(residuals[i] for i in added)
        temb = medium.time_text_embed(arguments["timestep"], arguments["pooled_projections"])
        expected = unpatchify(medium.proj_out(medium.norm_out(tokens, temb)), 4, 6, 2)
    np.testing.assert_allclose(result, expected, atol=1e-5)


# Attention processors.


class Louder(JointAttnProcessor2_5):
    def __call__(self, attn, hidden_states, encoder_hidden_states=None, loudness=1.0):
        return super().__call__(attn, hidden_states * loudness, encoder_hidden_states)


def test_processors_by_name():
    model = make(**MEDIUM)
    processors = model.attn_processors
    blocks = [f"transformer_blocks.{i}.attn.processor" for i in range(4)]
    assert set(processors) == {*blocks, "transformer_blocks.0.attn2.processor", "transformer_blocks.1.attn2.processor"}
    one = {name: Louder() if name == blocks[2] else processor for name, processor in processors.items()}
    model.set_attn_processor(one)
    assert model.attn_processors == one
    louder = Louder()
    model.set_attn_processor(louder)
    assert set(model.attn_processors.values()) == {louder}


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_wrong_dict_of_processors(medium, change):
    processors = dict(medium.attn_processors)
    name = "transformer_blocks.3.attn.processor"
    processor = processors.pop(name)
    if change == "unknown":
        processors.update({name: processor, "transformer_blocks.9.attn.processor": processor})
        name = "transformer_blocks.9.attn.processor"
    with pytest.raises(InputError, match=rf"6 attentions.*{name}.*attn_processors"):
        medium.set_attn_processor(processors)


def test_joint_attention_kwargs_reach_the_processors():
    model = make(**MEDIUM)
    expected = run(model)
    model.set_attn_processor(Louder())
    np.testing.assert_array_equal(run(model), expected)
    kwargs = {"loudness": 1.5}
    assert np.abs(run(model, joint_attention_kwargs=kwargs) - expected).max() > 1e-4
    assert kwargs == {"loudness": 1.5}


def test_unknown_joint_attention_kwargs(medium):
    with pytest.raises(InputError, match=r"'loudness'.*accepted: attention_mask.*Remove it"):
        run(medium, joint_attention_kwargs={"loudness": 1.5})


def test_processors_of_a_call_for_no_attention(medium):
    with pytest.raises(InputError, match=r"attn_processors has \['blocks.1.attn'\].*SD3Transformer2DModel"):
        run(medium, attn_processors={"blocks.1.attn": JointAttnProcessor2_5()})


def test_scale_without_lora(medium):
    expected = run(medium)
    np.testing.assert_array_equal(run(medium, joint_attention_kwargs={"scale": 1.0}), expected)
    np.testing.assert_array_equal(run(medium, joint_attention_kwargs={}), expected)
    with pytest.raises(InputError, match=r"'scale'\] is 0.5.*LoRA.*none is loaded"):
        run(medium, joint_attention_kwargs={"scale": 0.5})


# Switches that change cost, not results.


def test_fused_projections():
    model = make(**MEDIUM)
    expected, names = run(model), set(model.state_dict())
    model.fuse_qkv_projections()
    assert golden.difference(run(model), expected) <= ROUNDING
    assert set(model.state_dict()) == names
    for parameter in model.parameters():  # the copies stay: fused once, they no longer look at the weights
        parameter.set_value(parameter * 0.5)
    fused = run(model)
    model.unfuse_qkv_projections()
    assert np.abs(run(model) - fused).max() > 1e-4


@pytest.mark.parametrize("chunk_size, dim", [(None, 0), (1, 1), (5, 1), (100, 1)])
def test_forward_chunking(medium, chunk_size, dim):
    expected = run(medium)
    calls = []
    hook = medium.transformer_blocks[0].ff.net[0].register_forward_post_hook(lambda *call: calls.append(call[2].shape))
    medium.enable_forward_chunking(chunk_size, dim)
    assert golden.difference(run(medium), expected) <= ROUNDING
    sizes = [shape[dim] for shape in calls]
    assert max(sizes) <= (chunk_size or 1) and sum(sizes) == (2, 24)[dim]
    medium.disable_forward_chunking()
    calls.clear()
    np.testing.assert_array_equal(run(medium), expected)
    assert len(calls) == 1
    hook.remove()


def test_forward_chunking_over_width(medium):
    with pytest.raises(InputError, match=r"dim is 2.*0 \(batch\) or 1 \(sequence\)"):
        medium.enable_forward_chunking(4, 2)


# Gradients.

# The last block computes a query for the text and drops what comes of it.
UNUSED = ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")


def gradients(model):
    """The loss, and name -> gradient (0 where there is none)."""
    model.clear_gradients()
    arguments = inputs(model)
    loss = (model(**arguments).sample - arguments["hidden_states"]).square().mean()
    loss.backward()
    return float(loss), {n: np.zeros(1) if p.grad is None else np.array(p.grad) for n, p in model.named_parameters()}


@pytest.mark.parametrize("config", [{}, MEDIUM], ids=["sd3", "sd35_medium"])
def test_every_parameter_gets_a_gradient(config):
    model = make(**config)
    model.train()
    unused = tuple(f"transformer_blocks.{model.config.num_layers - 1}.attn.{name}" for name in UNUSED)
    for name, gradient in gradients(model)[1].items():
        if name not in unused:
            assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, name


@pytest.mark.parametrize("config", [{}, MEDIUM], ids=["sd3", "sd35_medium"])
def test_gradient_checkpointing(config):
    model = make(**config)
    model.train()
    loss, expected = gradients(model)
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    runs = []
    hook = model.transformer_blocks[1].register_forward_post_hook(lambda *call: runs.append(1))
    again, found = gradients(model)
    hook.remove()
    assert len(runs) == 2  # forward, and once more on the way back
    assert again == pytest.approx(loss, rel=1e-5)
    for name, gradient in expected.items():
        assert np.abs(found[name] - gradient).max() <= 5e-5 * np.abs(gradient).max(), name
    for stream in ("ff.net.2.weight", "ff_context.net.2.weight", "attn.to_add_out.weight"):
        assert np.abs(found[f"transformer_blocks.0.{stream}"]).max() > 0
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing


def test_checkpointing_rests_in_evaluation(medium):
    medium.enable_gradient_checkpointing()
    runs = []
    hook = medium.transformer_blocks[0].register_forward_post_hook(lambda *call: runs.append(1))
    gradients(medium)
    medium.disable_gradient_checkpointing()
    hook.remove()
    assert len(runs) == 1


# Loading and saving.


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trip(tmp_path, dtype):
    model = make(**MEDIUM).to(dtype=dtype)
    model.save_pretrained(tmp_path)
    again = SD3Transformer2DModel.from_pretrained(tmp_path, paddle_dtype=dtype)
    assert dict(again.config) == dict(model.config)
    assert again.dtype == model.dtype and not again.training
    state = again.state_dict()
    assert set(state) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype
        np.testing.assert_array_equal(state[name].numpy(), tensor.numpy())
    if dtype == "float32":
        np.testing.assert_array_equal(run(again), run(model))


def test_loaded_model_trains(tmp_path):
    make(**MEDIUM).save_pretrained(tmp_path)
    model = SD3Transformer2DModel.from_pretrained(tmp_path)
    model.train()
    optimizer = paddle.optimizer.SGD(1e-3, parameters=model.parameters())
    before, _ = gradients(model)
    optimizer.step()
    assert gradients(model)[0] < before


def test_the_modulation_of_all_steps_is_contiguous():
    """Each step reads its part as it lies there; a strided one would be copied again at every step."""
    net = SD3Transformer2DModel(**{**tiny.TRANSFORMER, **tiny.SD35})
    text, pooled = paddle.zeros([2, 5, 40]), paddle.zeros([2, 28])
    steps = net.prepare(text, pooled, paddle.to_tensor([900.0, 700.0]))
    chunks = [x for step in steps for block in step.blocks for stream in block for x in stream]
    assert len(chunks) > 2 * 3 * 12 and all(x.is_contiguous() and x.shape == [2, 32] for x in chunks)
