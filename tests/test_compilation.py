"""Static graphs: the same numbers, one trace for all sizes and steps, and what makes a new one."""

import numpy as np
import paddle
import pytest
from helpers import tiny

import ppsd3
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
