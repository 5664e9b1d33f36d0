"""Pictures to tensors and back."""

import numpy as np
import paddle
import pytest
from helpers.parameters import steady
from PIL import Image

from ppsd3 import VaeImageProcessor
from ppsd3.utils.errors import ConfigError, InputError


def picture(width=20, height=12, mode="RGB", seed=0):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype="uint8"), mode)


def test_there_and_back():
    image = picture(24, 16)
    tensor = VaeImageProcessor().preprocess(image)
    assert tensor.shape == [1, 3, 16, 24] and float(tensor.min()) >= -1 and float(tensor.max()) <= 1
    (back,) = VaeImageProcessor().postprocess(tensor)
    assert np.array_equal(np.asarray(back), np.asarray(image))


def test_rounds_to_the_nearest_level():
    levels = np.float32([0.0, 0.49, 0.51, 254.6, 300.0, -3.0]).reshape(1, 1, 1, 6)
    tensor = paddle.to_tensor(np.repeat(levels / 255 * 2 - 1, 3, axis=1))
    (image,) = VaeImageProcessor().postprocess(tensor)
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 255, 255, 0]


def test_sizes():
    processor = VaeImageProcessor(vae_scale_factor=8)
    assert processor.preprocess(picture(21, 19)).shape == [1, 3, 16, 16]
    assert processor.preprocess(picture(), height=32, width=40).shape == [1, 3, 32, 40]
    array = np.zeros((2, 19, 21, 3), "float32")
    assert processor.preprocess(array).shape == [2, 3, 16, 16]
    assert processor.preprocess(paddle.zeros([3, 19, 21]), 24, 24).shape == [1, 3, 24, 24]
    assert VaeImageProcessor(do_resize=False).preprocess(picture(21, 19)).shape == [1, 3, 19, 21]


def test_lists():
    processor = VaeImageProcessor()
    assert processor.preprocess([picture(16, 16), picture(30, 20)], 16, 16).shape == [2, 3, 16, 16]
    assert processor.preprocess([np.zeros((16, 16, 3))] * 2).shape == [2, 3, 16, 16]
    assert processor.preprocess([paddle.zeros([1, 3, 16, 16])] * 2).shape == [2, 3, 16, 16]


def test_latents_and_normalized_tensors_pass_through():
    latents = paddle.randn([1, 4, 5, 5])
    assert VaeImageProcessor(vae_latent_channels=4).preprocess(latents) is not None
    assert np.array_equal(VaeImageProcessor(vae_latent_channels=4).preprocess(latents).numpy(), latents.numpy())
    normalized = paddle.full([1, 3, 8, 8], -0.5)
    assert np.array_equal(VaeImageProcessor().preprocess(normalized).numpy(), normalized.numpy())


def test_masks():
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    mask = processor.preprocess(picture(16, 16))
    assert mask.shape == [1, 1, 16, 16] and set(np.unique(mask.numpy())) == {0.0, 1.0}
    assert VaeImageProcessor(do_convert_rgb=True).preprocess(picture(16, 16, "L")).shape == [1, 3, 16, 16]


def test_some_pictures_stay_as_they_are():
    tensor = paddle.full([2, 3, 8, 8], 0.5)
    array = VaeImageProcessor().postprocess(tensor, "np", do_denormalize=[True, False])
    assert array[0, 0, 0, 0] == 0.75 and array[1, 0, 0, 0] == 0.5


@pytest.mark.parametrize("image", [[], "file.png", [picture(), np.zeros((8, 8, 3))], [1]], ids=steady)
def test_refuses(image):
    with pytest.raises(InputError, match="`image"):
        VaeImageProcessor().preprocess(image)


def test_refuses_different_sizes():
    with pytest.raises(InputError, match="differ in size"):
        VaeImageProcessor().preprocess([np.zeros((8, 8, 3)), np.zeros((16, 8, 3))])


def test_refuses_levels():
    with pytest.raises(InputError, match="int64"):
        VaeImageProcessor().preprocess(np.zeros((8, 8, 3), "int64"))


def test_refuses_output():
    with pytest.raises(InputError, match="jpeg"):
        VaeImageProcessor().postprocess(paddle.zeros([1, 3, 8, 8]), "jpeg")
    with pytest.raises(InputError, match="tensor"):
        VaeImageProcessor().postprocess([picture()])
    with pytest.raises(ConfigError, match="exclude"):
        VaeImageProcessor(do_convert_rgb=True, do_convert_grayscale=True)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(16, 16), (24, 40), (64, 8)])
@pytest.mark.parametrize(
    "options", [{}, {"resample": "bicubic"}, {"do_normalize": False, "do_binarize": True}], ids=steady
)
def test_as_diffusers(size, options):
    image_processor = pytest.importorskip("diffusers.image_processor")
    for image in (picture(37, 29), np.asarray(picture(37, 29), "float32") / 255):
        theirs = image_processor.VaeImageProcessor(**options).preprocess(image, *size).numpy()
        assert np.array_equal(VaeImageProcessor(**options).preprocess(image, *size).numpy(), theirs)


def test_forms_of_pictures():
    """PIL, arrays and tensors, there and back."""
    array = (np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)) / 255).astype("float32")
    pictures = VaeImageProcessor.numpy_to_pil(array)
    np.testing.assert_array_equal(VaeImageProcessor.pil_to_numpy(pictures), array)
    assert VaeImageProcessor.pil_to_numpy(pictures[0].convert("L")).shape == (1, 5, 7, 1)
    tensor = VaeImageProcessor.numpy_to_pt(array)
    assert tensor.shape == [2, 3, 5, 7] and VaeImageProcessor.numpy_to_pd(array[..., 0]).shape == [2, 1, 5, 7]
    np.testing.assert_array_equal(VaeImageProcessor.pt_to_numpy(tensor), array)
