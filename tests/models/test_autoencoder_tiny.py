"""AutoencoderTiny: shapes, use as a pipeline's VAE, and what it refuses."""

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3 import AutoencoderTiny, DiffusionPipeline, TorchGenerator
from ppsd3.ops import use_native
from ppsd3.utils.errors import ConfigError, InputError

CONFIG = {
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (1, 1, 2),
    "num_decoder_blocks": (2, 1, 1),
}


@pytest.fixture(scope="module")
def vae():
    return tiny.fill(AutoencoderTiny(**CONFIG))


def picture(*shape):
    return paddle.to_tensor(np.tanh(np.random.standard_normal(shape)).astype("float32"))


def test_taesd3_has_the_published_layout():
    with paddle.LazyGuard():
        shapes = {n: tuple(p.shape) for n, p in AutoencoderTiny(latent_channels=16).state_dict().items()}
    assert len(shapes) == 67 + 67 and shapes["encoder.layers.14.weight"] == (16, 64, 3, 3)
    assert shapes["encoder.layers.0.weight"] == (64, 3, 3, 3) and shapes["encoder.layers.2.weight"] == (64, 64, 3, 3)
    assert shapes["decoder.layers.0.weight"] == (64, 16, 3, 3) and shapes["decoder.layers.18.bias"] == (3,)
    assert shapes["decoder.layers.6.weight"] == (64, 64, 3, 3) and "decoder.layers.6.bias" not in shapes
    assert shapes["decoder.layers.2.conv.4.bias"] == (64,)


def test_sizes(vae):
    latents = vae.encode(picture(2, 3, 16, 24)).latents
    assert latents.shape == [2, 4, 4, 6] and vae.spatial_factor == 4
    assert vae.decode(latents).sample.shape == [2, 3, 16, 24]
    assert vae.decode(latents, return_dict=False)[0].shape == [2, 3, 16, 24]
    assert vae(picture(1, 3, 8, 8)).sample.shape == [1, 3, 8, 8]


def test_latents_as_a_distribution(vae):
    output = vae.encode(picture(1, 3, 8, 8))
    np.testing.assert_array_equal(output.latent_dist.sample().numpy(), output.latents.numpy())
    np.testing.assert_array_equal(output.latent_dist.mode().numpy(), output.latents.numpy())


def test_slicing_is_exact_and_tiling_close(vae):
    x = picture(2, 3, 32, 48)
    latents = vae.encode(x).latents
    whole = vae.decode(latents).sample.numpy()
    vae.enable_slicing()
    np.testing.assert_allclose(vae.decode(latents).sample.numpy(), whole, atol=1e-5)
    vae.enable_tiling(tile_sample_min_size=24)
    tiled = vae.decode(latents).sample.numpy()
    vae.disable_slicing()
    vae.disable_tiling()
    assert 1e-6 < np.abs(tiled - whole).mean() < 0.2 * np.abs(whole).mean()


def test_kernels_change_nothing(vae):
    latents = vae.encode(picture(1, 3, 16, 16)).latents
    with_kernels = vae.decode(latents).sample.numpy()
    use_native(False)
    try:
        plain = vae.decode(latents).sample.numpy()
    finally:
        use_native(True)
    np.testing.assert_allclose(with_kernels, plain, atol=1e-5)


def test_as_the_vae_of_a_pipeline(vae, tmp_path):
    pipe = tiny.make_pipeline()
    pipe.vae = vae
    latents = pipe("red", num_inference_steps=2, generator=TorchGenerator(0), output_type="latent").images
    image = pipe("red", num_inference_steps=2, generator=TorchGenerator(0), output_type="np").images[0]
    expected = vae.decode(latents).sample.numpy()[0].transpose(1, 2, 0)
    np.testing.assert_allclose(image, np.clip(expected / 2 + 0.5, 0, 1), atol=1e-5)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded.vae) is AutoencoderTiny and loaded.vae_scale_factor == pipe.vae_scale_factor == 4
    assert dict(loaded.vae.config) == dict(vae.config)


def test_gradient_checkpointing(vae):
    x = picture(1, 3, 8, 8)

    def gradient():
        vae.train()
        vae.clear_gradients()
        vae.decode(vae.encode(x).latents).sample.square().sum().backward()
        vae.eval()
        return vae.encoder.layers[0].weight.grad.numpy()

    plain = gradient()
    vae.enable_gradient_checkpointing()
    np.testing.assert_allclose(gradient(), plain, rtol=1e-4, atol=1e-5)
    vae.disable_gradient_checkpointing()
    vae.clear_gradients()


@pytest.mark.parametrize(
    "config, match",
    [
        ({"num_encoder_blocks": (1, 1)}, "num_encoder_blocks has 2 entries"),
        ({"decoder_block_out_channels": (8, 8, 16, 8)}, "all widths of one side"),
        ({"upsample_fn": "bilinear"}, "'bilinear' by 2"),
        ({"act_fn": "tanh"}, "act_fn='tanh'"),
        (
            {"num_encoder_blocks": (1, 1), "encoder_block_out_channels": (8, 8)},
            "differ in length",
        ),
    ],
)
def test_configurations_that_cannot_be(config, match):
    with pytest.raises(ConfigError, match=match):
        AutoencoderTiny(**config)


def test_sizes_that_do_not_fit(vae):
    with pytest.raises(InputError, match=r"AutoencoderTiny.encode takes .* multiples of 4; got \[1, 3, 10, 8\]"):
        vae.encode(picture(1, 3, 10, 8))
    with pytest.raises(InputError, match=r"AutoencoderTiny.decode takes \[B, 4,"):
        vae.decode(picture(1, 3, 10, 8))


def test_encoding_draws_nothing():
    vae, generator = AutoencoderTiny(), TorchGenerator(0)
    latents = vae.encode(paddle.zeros([1, 3, 16, 16]))
    assert np.array_equal(latents.latent_dist.sample(generator).numpy(), latents.latents.numpy())
    assert np.array_equal(generator.randn([16]), TorchGenerator(0).randn([16]))
