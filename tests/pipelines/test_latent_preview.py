"""Previews: the projection, a tiny VAE, and what a callback shows."""

import numpy as np
import paddle
import pytest
from helpers import tiny

from ppsd3 import AutoencoderKL, AutoencoderTiny, LatentPreview, StableDiffusion3Pipeline, TorchGenerator
from ppsd3.shapes import render, sample_scene
from ppsd3.utils.errors import InputError


@pytest.fixture(scope="module")
def shapes_vae():
    return AutoencoderKL.from_pretrained("shapes", subfolder="vae")


def test_the_projection_of_sd3():
    latents = paddle.zeros([2, 16, 3, 4])
    latents[1, 2] = 2.0
    grey, reddish = (np.asarray(image) for image in LatentPreview()(latents))
    assert grey.shape == (3, 4, 3) and (grey == 128).all()
    expected = np.round((2 * np.array([0.1848, 0.0762, 0.0360]) / 2 + 0.5) * 255)
    np.testing.assert_array_equal(reddish[0, 0], expected)


def test_a_fitted_projection_resembles_the_pictures(shapes_vae):
    rng = np.random.default_rng(5)
    pictures = np.stack([render(sample_scene(rng)) for _ in range(8)]).astype("float32")
    x = paddle.to_tensor(pictures.transpose(0, 3, 1, 2) / 127.5 - 1)
    with paddle.no_grad():
        latents = shapes_vae.scale_latents(shapes_vae.encode(x).latent_dist.mode())
    small = pictures.reshape(8, 8, 8, 8, 8, 3).mean((2, 4))  # a pixel for each latent position
    previews = np.stack([np.asarray(image, "float32") for image in LatentPreview.fit(shapes_vae)(latents)])
    unexplained = ((previews - small) ** 2).mean() / small.reshape(-1, 3).var(0).mean()
    assert unexplained < 0.2
    np.testing.assert_array_equal(LatentPreview.fit(shapes_vae).factors, LatentPreview.fit(shapes_vae).factors)


def test_the_preview_of_a_pipeline(shapes_vae):
    pipe = tiny.make_pipeline()
    assert len(LatentPreview.of(pipe).factors) == 4  # fitted
    pipe.vae = AutoencoderTiny(latent_channels=4)
    assert LatentPreview.of(pipe).vae is pipe.vae
    with paddle.LazyGuard():
        pipe.vae = AutoencoderKL(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)
    np.testing.assert_array_equal(LatentPreview.of(pipe).factors, LatentPreview().factors)


def test_a_tiny_vae_decodes():
    vae = tiny.fill(AutoencoderTiny(latent_channels=16))
    (image,) = LatentPreview(vae=vae)(paddle.zeros([1, 16, 2, 3]))
    assert image.size == (24, 16)


def test_the_callback_shows_where_the_steps_lead():
    """With a velocity that never changes every step but the first shows the very end."""
    pipe = StableDiffusion3Pipeline.from_pretrained("shapes")
    pipe.set_progress_bar_config(disable=True)
    velocity = paddle.randn([1, 16, 8, 8])

    def constant(hidden_states, **kwargs):
        return (velocity,)

    pipe.transformer.forward = constant
    shown, preview = {}, LatentPreview.of(pipe)
    latents = pipe(
        "red",
        num_inference_steps=6,
        guidance_scale=1.0,
        generator=TorchGenerator(0),
        output_type="latent",
        callback_on_step_end=preview.callback(lambda step, images: shown.update({step: np.asarray(images[0], int)})),
    ).images
    end = np.asarray(preview(latents)[0], int)
    assert sorted(shown) == [0, 1, 2, 3, 4, 5]
    assert all(np.abs(shown[step] - end).max() <= 1 for step in range(1, 6))
    assert np.abs(shown[0] - end).max() > 1


def test_every_other_step():
    pipe = tiny.make_pipeline()
    steps = []
    call = LatentPreview.of(pipe).callback(lambda step, images: steps.append((step, len(images))), every=2)
    pipe("red", num_inference_steps=5, num_images_per_prompt=2, callback_on_step_end=call)
    assert steps == [(1, 2), (3, 2)]


def test_what_cannot_be_used():
    with pytest.raises(InputError, match=r"\[1, 4, 2, 2\], and this preview is of \[B, 16, H, W\]"):
        LatentPreview()(paddle.zeros([1, 4, 2, 2]))
    with pytest.raises(InputError, match="not both"):
        LatentPreview(vae=AutoencoderTiny(), factors=np.zeros((4, 3)))
    with pytest.raises(InputError, match=r"\[4, 4\].*\[channels, 3\]"):
        LatentPreview(factors=np.zeros((4, 4)))
    with pytest.raises(InputError, match="`every` is 0"):
        LatentPreview().callback(print, every=0)
