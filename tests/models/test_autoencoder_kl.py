"""AutoencoderKL by itself: shapes, memory options that change nothing (or little), and errors that say what to do."""

import numpy as np
import paddle
import pytest

from ppsd3.models import AutoencoderKL
from ppsd3.models.vae import DiagonalGaussianDistribution
from ppsd3.ops.vision import upsample_nearest_2x
from ppsd3.utils.errors import ConfigError, InputError

TINY = dict(
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(8, 16, 16),
    latent_channels=4,
    norm_num_groups=4,
    sample_size=32,
    scaling_factor=1.5305,
    shift_factor=0.0609,
    use_quant_conv=False,
    use_post_quant_conv=False,
)


def make(**changes):
    paddle.seed(0)
    model = AutoencoderKL(**{**TINY, **changes})
    model.eval()
    return model


def pictures(*shape):
    return paddle.to_tensor(np.random.RandomState(1).uniform(-1, 1, shape).astype("float32"))


def test_shapes_and_return_forms():
    model, x = make(), pictures(2, 3, 32, 16)
    posterior = model.encode(x).latent_dist
    assert posterior.mean.shape == [2, 4, 8, 4]
    assert model.encode(x, return_dict=False)[0].mode().shape == [2, 4, 8, 4]
    assert model.decode(posterior.mode()).sample.shape == x.shape
    assert model.decode(posterior.mode(), return_dict=False)[0].shape == x.shape
    assert model(x).sample.shape == x.shape
    assert model.spatial_factor == 4


def test_forward_takes_the_mode_or_a_draw():
    model, x = make(), pictures(1, 3, 16, 16)
    posterior = model.encode(x).latent_dist
    np.testing.assert_array_equal(model(x).sample, model.decode(posterior.mode()).sample)
    from ppsd3.utils.random import TorchGenerator

    drawn = model.decode(posterior.sample(TorchGenerator(3))).sample
    np.testing.assert_array_equal(model(x, sample_posterior=True, generator=TorchGenerator(3)).sample, drawn)


def test_latent_scaling_is_inverted():
    z = pictures(2, 4, 3, 5)
    model = make()
    np.testing.assert_allclose(model.scale_latents(z), (z.numpy() - 0.0609) * 1.5305, rtol=1e-6)
    np.testing.assert_allclose(model.unscale_latents(model.scale_latents(z)), z, atol=1e-6)
    plain = make(shift_factor=None)
    np.testing.assert_allclose(plain.scale_latents(z), z.numpy() * 1.5305, rtol=1e-6)


def test_latent_scaling_per_channel():
    mean, std = (0.1, 0.2, 0.3, 0.4), (1.0, 2.0, 3.0, 4.0)
    model, z = make(shift_factor=None, latents_mean=mean, latents_std=std), pictures(2, 4, 3, 5)
    expected = (z.numpy() - np.reshape(mean, (1, 4, 1, 1))) * 1.5305 / np.reshape(std, (1, 4, 1, 1))
    np.testing.assert_allclose(model.scale_latents(z), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.unscale_latents(model.scale_latents(z)), z, atol=1e-6)


def test_slicing_gives_the_same():
    model, x = make(), pictures(3, 3, 16, 16)
    z = model.encode(x).latent_dist.parameters
    sample = model.decode(z[:, :4]).sample
    model.enable_slicing()
    np.testing.assert_allclose(model.encode(x).latent_dist.parameters, z, atol=1e-5)
    np.testing.assert_allclose(model.decode(z[:, :4]).sample, sample, atol=1e-5)
    model.disable_slicing()
    assert not model.use_slicing


def count_calls(layer):
    calls = []
    layer.register_forward_pre_hook(lambda layer, inputs: calls.append(inputs[0].shape))
    return calls


def test_tiling_engages_above_the_tile_and_only_there():
    model = make()
    assert (model.tile_sample_min_size, model.tile_latent_min_size) == (32, 8)
    model.enable_tiling()
    encoded, decoded = count_calls(model.encoder), count_calls(model.decoder)
    z = model.encode(pictures(1, 3, 32, 32)).latent_dist.mode()
    assert encoded == [[1, 3, 32, 32]]
    assert model.decode(z).sample.shape == [1, 3, 32, 32] and len(decoded) == 1
    del encoded[:], decoded[:]
    z = model.encode(pictures(1, 3, 64, 48)).latent_dist.mode()
    assert z.shape == [1, 4, 16, 12] and len(encoded) == 6  # rows start at 0, 24, 48 and columns at 0, 24
    assert model.decode(z).sample.shape == [1, 3, 64, 48] and len(decoded) == 6
    model.disable_tiling()
    del encoded[:]
    model.encode(pictures(1, 3, 64, 48))
    assert len(encoded) == 1


def test_default_tile_engages_at_1024():
    assert make(sample_size=1024).tile_sample_min_size == 512
    assert make(sample_size=(256, 1024)).tile_sample_min_size == 512


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.3, 0.5])
def test_tiling_aligns_for_every_overlap(overlap):
    model = make()
    model.enable_tiling(16, overlap)
    x = pictures(1, 3, 40, 28)
    # Average pooling and repetition are exact under tiling, so any misalignment shows.
    model._encode_tile = lambda tile: paddle.nn.functional.avg_pool2d(tile, 4)
    model._decode_tile = lambda tile: upsample_nearest_2x(upsample_nearest_2x(tile))
    pooled = paddle.nn.functional.avg_pool2d(x, 4)
    np.testing.assert_allclose(model._encode(x), pooled, atol=1e-6)
    np.testing.assert_allclose(model._decode(pooled), upsample_nearest_2x(upsample_nearest_2x(pooled)), atol=1e-6)


def test_tiled_result_resembles_the_whole():
    """Group norm sees one tile at a time, so with random weights only the resemblance is checked."""
    model, z = make(mid_block_add_attention=False), pictures(1, 4, 24, 24)
    whole = model.decode(z).sample.numpy()
    model.enable_tiling(64, 0.5)
    tiled = model.decode(z).sample.numpy()
    assert not np.array_equal(tiled, whole)
    assert np.corrcoef(whole.ravel(), tiled.ravel())[0, 1] > 0.95


def test_gradient_checkpointing_gives_the_same_gradients():
    model, x = make(), pictures(2, 3, 16, 16)

    def gradients():
        model.clear_gradients()
        sample = model(x).sample
        (sample**2).mean().backward()
        return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    model.train()
    plain = gradients()
    model.enable_gradient_checkpointing()
    assert model.encoder.gradient_checkpointing and model.decoder.gradient_checkpointing
    recomputed = gradients()
    # The mode leaves the log-variance half of the encoder's output without effect, but with a (zero) gradient.
    assert plain.keys() == recomputed.keys()
    for name in plain:
        np.testing.assert_allclose(recomputed[name], plain[name], atol=1e-6, err_msg=name)
    model.disable_gradient_checkpointing()
    assert not model.encoder.gradient_checkpointing


def test_checkpointing_reaches_blocks_behind_a_frozen_stem():
    model = make()
    model.train()
    model.enable_gradient_checkpointing()
    for parameter in model.encoder.conv_in.parameters():
        parameter.stop_gradient = True
    model(pictures(1, 3, 16, 16)).sample.mean().backward()
    assert float(model.encoder.down_blocks[0].resnets[0].conv1.weight.grad.abs().sum()) > 0


def test_distribution():
    mean, logvar = pictures(2, 3, 4, 4), 40 * pictures(2, 3, 4, 4)
    posterior = DiagonalGaussianDistribution(paddle.concat([mean, logvar], axis=1))
    assert float(posterior.logvar.min()) >= -30 and float(posterior.logvar.max()) <= 20
    np.testing.assert_allclose(posterior.std.numpy() ** 2, posterior.var, rtol=1e-4)
    np.testing.assert_array_equal(posterior.mode(), mean)
    np.testing.assert_allclose(posterior.kl(posterior), np.zeros(2), atol=1e-3)
    standard = DiagonalGaussianDistribution(paddle.zeros([2, 6, 4, 4]))
    np.testing.assert_allclose(standard.kl(), np.zeros(2))
    np.testing.assert_allclose(posterior.kl(standard), posterior.kl(), rtol=1e-5)
    nll = standard.nll(paddle.zeros([2, 3, 4, 4]))
    np.testing.assert_allclose(nll, np.full(2, 48 * 0.5 * np.log(2 * np.pi)), rtol=1e-6)
    fixed = DiagonalGaussianDistribution(posterior.parameters, deterministic=True)
    np.testing.assert_array_equal(fixed.sample(), mean)
    np.testing.assert_array_equal(fixed.kl(), np.zeros(2))


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D")), "AttnDown"),
        (dict(up_block_types=("UpDecoderBlock2D",) * 2), "one per block"),
        (dict(act_fn="gelu"), "silu"),
        (dict(norm_num_groups=5), "common divisor"),
        (dict(latents_mean=(0.0,) * 4), "latents_std"),
        (dict(latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4), "shift_factor"),
        (dict(shift_factor=None, latents_mean=(0.0,) * 3, latents_std=(1.0,) * 3), "one per latent channel"),
    ],
)
def test_bad_configurations_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        AutoencoderKL(**{**TINY, **changes})


def test_bad_inputs_are_refused():
    model = make()
    with pytest.raises(InputError, match="3 channels"):
        model.encode(pictures(1, 4, 16, 16))
    with pytest.raises(InputError, match=r"multiples of 4.*16x28"):
        model.encode(pictures(1, 3, 16, 30))
    with pytest.raises(InputError, match=r"\[B, 4, height, width\]"):
        model.decode(pictures(4, 8, 8))
    with pytest.raises(InputError, match="multiple of 4"):
        model.enable_tiling(30)
    with pytest.raises(InputError, match=r"tile_overlap_factor=1.0"):
        model.enable_tiling(16, 1.0)
    assert not model.use_tiling


def test_save_and_load(tmp_path):
    model, x = make(use_quant_conv=True), pictures(1, 3, 16, 16)
    model.save_pretrained(str(tmp_path))
    again = AutoencoderKL.from_pretrained(str(tmp_path))
    assert dict(again.config) == dict(model.config)
    np.testing.assert_array_equal(again(x).sample, model(x).sample)
