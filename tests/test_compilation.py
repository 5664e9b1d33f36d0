"""Static graphs: the same numbers, one trace for all sizes and steps, and what makes a new one; Paddle's own ways to
make them."""

import numpy as np
import paddle
import pytest
from helpers import tiny

import ppsd3
from ppsd3 import SD3ControlNetModel
from ppsd3.models.attention_processor import JointAttnProcessor2_5
from ppsd3.pipelines.stable_diffusion_3.guidance import PerturbedAttentionGuidance
from ppsd3.utils.errors import InputError

CALL = dict(num_inference_steps=3, max_sequence_length=16, output_type="np")
SIZES = ((64, 64), (96, 64))


@pytest.fixture
def pipe():
    return tiny.make_pipeline()


def drawn(pipe, height=64, width=64, **call):
    generator = ppsd3.TorchGenerator(0)
    return pipe("a red circle", height=height, width=width, generator=generator, **CALL, **call).images


def test_pictures_of_all_sizes_from_one_trace(pipe):
    eager = [drawn(pipe, *size) for size in SIZES]
    assert pipe.compile() is pipe
    for size, expected in zip(SIZES, eager):
        np.testing.assert_allclose(drawn(pipe, *size), expected, atol=1e-4)
    assert [len(pipe.transformer._graphs), len(pipe.vae._graphs)] == [1, 1]


def test_changed_weights_are_seen(pipe):
    pipe.compile("transformer")
    before = drawn(pipe)
    pipe.transformer.proj_out.weight.set_value(-pipe.transformer.proj_out.weight)
    changed = drawn(pipe)
    assert np.abs(changed - before).max() > 1e-2
    pipe.transformer._graphs = None
    np.testing.assert_allclose(changed, drawn(pipe), atol=1e-4)


def test_skip_layer_guidance_has_a_trace_of_its_own(pipe):
    options = dict(skip_guidance_layers=[0], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0)
    eager = drawn(pipe, **options)
    np.testing.assert_allclose(drawn(pipe.compile(), **options), eager, atol=1e-4)
    assert len(pipe.transformer._graphs) == 2


def test_perturbed_attention_has_a_trace_of_its_own(pipe):
    def guided():
        return drawn(pipe, guidance=PerturbedAttentionGuidance(layers=[1]))

    eager = guided()
    assert np.abs(eager - drawn(pipe)).max() > 1e-3
    pipe.compile("transformer")
    np.testing.assert_allclose(guided(), eager, atol=1e-4)
    assert len(pipe.transformer._graphs) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.fuse_qkv_projections(),
        lambda model: model.set_attn_processor(JointAttnProcessor2_5()),
        lambda model: model.enable_forward_chunking(1, 0),
        lambda model: model.quantize("int8"),
    ],
    ids=["fused", "processor", "chunks", "int8"],
)
def test_a_changed_network_is_traced_anew(pipe, change):
    drawn(pipe.compile("transformer"))
    (traced,) = pipe.transformer._graphs.values()
    change(pipe.transformer)
    picture = drawn(pipe)
    assert traced not in pipe.transformer._graphs.values()
    pipe.transformer._graphs = None
    with ppsd3.ops.use_native(False):
        np.testing.assert_allclose(picture, drawn(pipe), atol=1e-3)


def test_a_network_in_training_stays_so(pipe):
    pipe.compile().transformer.train()
    drawn(pipe)
    assert pipe.transformer.training and all(layer.training for layer in pipe.transformer.sublayers())


def test_gradients_are_recorded_eagerly(pipe):
    vae = pipe.compile("vae").vae
    latents = paddle.randn([1, vae.config.latent_channels, 4, 4])
    latents.stop_gradient = False
    vae.decode(latents).sample.sum().backward()
    assert latents.grad is not None and not vae._graphs


@pytest.mark.parametrize("components", ["text_encoder", "unet", ()])
def test_what_cannot_be_compiled_is_named(pipe, components):
    with pytest.raises(InputError, match="transformer, vae"):
        pipe.compile(components)
    assert pipe.transformer._graphs is None


# What people write to have graphs: (name of a network, network, a new directory) -> None.
def to_static(pipe, name, _):
    setattr(pipe, name, paddle.jit.to_static(getattr(pipe, name)))


def to_static_as_one_graph(pipe, name, _):
    setattr(pipe, name, paddle.jit.to_static(getattr(pipe, name), full_graph=True))


def forward_to_static(pipe, name, _):
    network = getattr(pipe, name)
    network.forward = paddle.jit.to_static(network.forward)


def inference(pipe, name, directory):  # with the options of ppdiffusers' deployment of SD3
    made = paddle.incubate.jit.inference(
        getattr(pipe, name),
        save_model_dir=str(directory),
        enable_new_ir=True,
        cache_static_model=True,
        exp_enable_use_cutlass=False,
        delete_pass_lists=["add_norm_fuse_pass"],
    )
    setattr(pipe, name, made)


STATIC = [to_static, to_static_as_one_graph, forward_to_static]
INFERENCE = [inference] if hasattr(paddle.incubate, "jit") else []  # came after 2.6


@pytest.mark.parametrize("make", [*STATIC, *INFERENCE])
def test_paddles_own_graphs_draw_the_same_picture(pipe, make, tmp_path):
    eager = [drawn(pipe, *SIZES[0]), drawn(pipe, *SIZES[1], guidance_scale=1.0), drawn(pipe, *SIZES[0])]
    make(pipe, "transformer", tmp_path)
    pictures = [drawn(pipe, *SIZES[0]), drawn(pipe, *SIZES[1], guidance_scale=1.0), drawn(pipe, *SIZES[0])]
    for picture, expected in zip(pictures, eager):
        np.testing.assert_allclose(picture, expected, atol=1e-4)


@pytest.mark.parametrize("make", STATIC)
def test_a_static_transformer_runs_its_own_graphs_in_a_pipeline(pipe, make, tmp_path):
    options = dict(skip_guidance_layers=[0], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0)
    eager = drawn(pipe, **options)
    make(pipe, "transformer", tmp_path)
    np.testing.assert_allclose(drawn(pipe, **options), eager, atol=1e-4)
    assert len(pipe.transformer._graphs) == 2


def call_of(pipe, rows=2):
    return {
        "hidden_states": paddle.randn([rows, 4, 8, 8]),
        "encoder_hidden_states": paddle.randn([rows, 10, 40]),
        "pooled_projections": paddle.randn([rows, 28]),
        "timestep": paddle.full([rows], 500.0),
    }


@pytest.mark.parametrize("make", STATIC)
@pytest.mark.parametrize("options", [{}, {"joint_attention_kwargs": {}}, {"skip_layers": [1]}])
def test_a_static_transformer_is_called_as_before(pipe, make, options, tmp_path):
    call = call_of(pipe)
    with paddle.no_grad():
        eager = pipe.transformer(**call, **options).sample
        make(pipe, "transformer", tmp_path)
        result = pipe.transformer(**call, **options)
        np.testing.assert_allclose(result.sample, eager, atol=1e-5)
        np.testing.assert_allclose(pipe.transformer(**call, **options, return_dict=False)[0], eager, atol=1e-5)


@pytest.mark.parametrize("make", INFERENCE)
def test_what_cannot_go_through_an_inference_graph_is_named(pipe, make, tmp_path):
    make(pipe, "transformer", tmp_path)
    skipping = dict(skip_guidance_layers=[0], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0)
    for name, options in {
        "skip_layers": skipping,
        "joint_attention_kwargs": {"joint_attention_kwargs": {"unknown": 1}},
        "attn_processors": {"guidance": PerturbedAttentionGuidance(layers=[1])},
    }.items():
        with pytest.raises(InputError, match=rf"^{name} cannot go through.*compile\(\)"):
            drawn(pipe, **options)
    pipe.enable_cache(ppsd3.FirstBlockCache())
    with pytest.raises(InputError, match="run_blocks"):
        drawn(pipe)


def add_lora(network):
    ppsd3.add_adapter(network, ppsd3.LoraConfig(r=2))
    for name, parameter in network.named_parameters():
        if "adapters" in name:
            parameter.set_value(0.2 * paddle.randn(parameter.shape))


@pytest.mark.parametrize("make", INFERENCE)
def test_an_inference_graph_does_not_outlive_a_change(pipe, make, tmp_path, caplog):
    make(pipe, "transformer", tmp_path)
    drawn(pipe)
    add_lora(pipe.transformer)
    changed = drawn(pipe)
    assert "paddle.incubate.jit.inference once more" in caplog.text
    assert "forward" not in vars(pipe.transformer)
    make(pipe, "transformer", tmp_path)
    np.testing.assert_allclose(drawn(pipe), changed, atol=1e-4)
    with pytest.raises(InputError, match="scale of LoRA layers"):
        drawn(pipe, joint_attention_kwargs={"scale": 0.5})


def test_a_static_function_does_not_outlive_a_change(pipe):
    call = call_of(pipe)
    paddle.jit.to_static(pipe.transformer, full_graph=True)
    with paddle.no_grad():
        before = pipe.transformer(**call).sample
        add_lora(pipe.transformer)
        after = pipe.transformer(**call).sample
    assert float((after - before).abs().max()) > 1e-3


@pytest.mark.parametrize("make", [to_static, to_static_as_one_graph, forward_to_static])
def test_other_networks_draw_as_before(pipe, make, tmp_path):
    eager = drawn(pipe)
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "vae"):
        make(pipe, name, tmp_path)
    np.testing.assert_allclose(drawn(pipe), eager, atol=1e-4)


@pytest.mark.parametrize("make", [paddle.jit.to_static, *(paddle.incubate.jit.inference for _ in INFERENCE)])
def test_decoding_may_be_replaced(pipe, make, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where Paddle saves what it makes
    eager = drawn(pipe)
    pipe.vae.decode = make(pipe.vae.decode)
    np.testing.assert_allclose(drawn(pipe), eager, atol=1e-4)


@pytest.mark.parametrize("make", INFERENCE)
def test_networks_that_take_more_than_tensors_refuse_an_inference_graph(pipe, make, tmp_path):
    for name in ("text_encoder", "text_encoder_3"):
        with pytest.raises(InputError, match="to_static"):
            make(pipe, name, tmp_path)
    pipe.controlnet = SD3ControlNetModel(**{**tiny.TRANSFORMER, "num_layers": 2})
    with pytest.raises(InputError, match="SD3ControlNetModel"):
        make(pipe, "controlnet", tmp_path)
