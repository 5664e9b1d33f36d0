"""Pictures of ppsd3 and of ppdiffusers 0.29.0 from the same checkpoint.

T5 reads as many tokens there as CLIP does, so ``max_sequence_length`` says so here.
"""

import numpy as np
import paddle
import pytest
from PIL import Image

from ppsd3 import StableDiffusion3Img2ImgPipeline

pytestmark = pytest.mark.interop

PROMPT, NEGATIVE = "a red circle to the left of a blue square", "green"
LENGTH = 32  # of the bundled model's CLIP
CALL = {"num_inference_steps": 10, "guidance_scale": 4.0, "output_type": "np"}
BAR = 0.005 / 255  # rounding in another order, made larger by guidance


def close(image, expected):
    assert expected.std() > 0.05
    np.testing.assert_allclose(image, expected, rtol=0, atol=BAR)


def their_generator(seed):
    return paddle.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"negative_prompt": NEGATIVE, "num_images_per_prompt": 2},
        {"guidance_scale": 1.0},
        {"prompt_2": "a blue square", "prompt_3": "", "negative_prompt_2": NEGATIVE, "clip_skip": 1},
        {"height": 48, "width": 80, "num_inference_steps": 4},
    ],
    ids=["default", "negative", "unguided", "three prompts", "size"],
)
@pytest.mark.parametrize("seed", [0, 42])
def test_text_to_image(ours, theirs, options, seed):
    """``paddle.seed(42)`` here is ``paddle.Generator().manual_seed(42)`` there."""
    call = {**CALL, **options}
    expected = theirs(PROMPT, generator=their_generator(seed), **call).images
    paddle.seed(seed)
    close(ours(PROMPT, max_sequence_length=LENGTH, **call).images, expected)


def test_given_latents(ours, theirs):
    latents = paddle.randn([1, ours.transformer.config.in_channels, 8, 8])
    expected = theirs(PROMPT, latents=latents, **CALL).images
    close(ours(PROMPT, latents=latents, max_sequence_length=LENGTH, **CALL).images, expected)


def test_encode_prompt(ours, theirs):
    """The four tensors, in the same order."""
    prompts = {"prompt": PROMPT, "prompt_2": "a blue square", "prompt_3": "two circles", "negative_prompt": NEGATIVE}
    expected = theirs.encode_prompt(**prompts, num_images_per_prompt=2)
    made = ours.encode_prompt(**prompts, num_images_per_prompt=2, max_sequence_length=LENGTH)
    assert len(made) == len(expected) == 4
    for one, other in zip(made, expected):
        assert one.shape == other.shape and one.shape[0] == 2
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=0, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("strength", [0.4, 0.95])
def test_image_to_image(ppdiffusers, ours, theirs, strength):
    rows, columns = np.mgrid[:64, :64]
    picture = np.stack([rows * 3, columns * 3, np.hypot(rows - 32, columns - 32) * 5], axis=-1)
    picture = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    call = {**CALL, "prompt": PROMPT, "image": picture, "strength": strength}
    pipe = ppdiffusers.StableDiffusion3Img2ImgPipeline(**theirs.components)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(generator=their_generator(42), **call).images
    pipe = StableDiffusion3Img2ImgPipeline.from_pipe(ours)
    paddle.seed(42)
    close(pipe(max_sequence_length=LENGTH, **call).images, expected)
