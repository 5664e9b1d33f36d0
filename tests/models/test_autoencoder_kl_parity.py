"""AutoencoderKL against diffusers: random weights saved by diffusers, read by the public loader."""

import numpy as np
import paddle
import pytest

from ppsd3.models import AutoencoderKL

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.parity

BAR = 1e-5  # max |difference| / max |reference|, float32
SD3_LIKE = dict(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 32, 32, 64),
    layers_per_block=2,
    latent_channels=16,
    norm_num_groups=8,
    sample_size=64,
    scaling_factor=1.5305,
    shift_factor=0.0609,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
VARIANTS = {
    "sd3": {},
    "quant_convs": dict(use_quant_conv=True, use_post_quant_conv=True, latent_channels=4),
    "no_attention": dict(mid_block_add_attention=False, layers_per_block=1),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(**{**SD3_LIKE, **VARIANTS[request.param]}).eval()
    directory = str(tmp_path_factory.mktemp(request.param))
    theirs.save_pretrained(directory)
    ours = AutoencoderKL.from_pretrained(directory)
    ours.eval()
    return theirs, ours


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad(), paddle.no_grad():
        yield


def normal(*shape):
    return np.random.RandomState(0).randn(*shape).astype("float32")


def assert_close(ours, theirs, bar=BAR):
    theirs = theirs.numpy()
    assert list(ours.shape) == list(theirs.shape)
    assert np.abs(ours.numpy() - theirs).max() <= bar * np.abs(theirs).max()


def check(pair, height, width):
    theirs, ours = pair
    x = normal(2, 3, height, width)
    posterior, expected = ours.encode(paddle.to_tensor(x)).latent_dist, theirs.encode(torch.tensor(x)).latent_dist
    assert_close(posterior.parameters, expected.parameters)
    assert_close(posterior.std, expected.std)
    assert_close(posterior.kl(), expected.kl())
    z = normal(2, theirs.config.latent_channels, height // 8, width // 8)
    assert_close(ours.decode(paddle.to_tensor(z)).sample, theirs.decode(torch.tensor(z)).sample)


@pytest.mark.parametrize("size", [(64, 64), (40, 96)])
def test_encode_and_decode(pair, size):
    check(pair, *size)


@pytest.mark.parametrize("size", [(64, 64), (88, 72)])
def test_tiled(pair, size):
    theirs, ours = pair
    theirs.enable_tiling()
    theirs.tile_sample_min_size, theirs.tile_latent_min_size = 32, 4
    ours.enable_tiling(32)
    try:
        check(pair, *size)
    finally:
        theirs.disable_tiling()
        ours.disable_tiling()


def test_parameter_names_and_shapes(pair):
    theirs, ours = pair
    expected = {name: list(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert {name: list(tensor.shape) for name, tensor in ours.state_dict().items()} == expected


def test_diffusers_reads_what_we_save(pair, tmp_path):
    theirs, ours = pair
    ours.save_pretrained(str(tmp_path))
    again = diffusers.AutoencoderKL.from_pretrained(str(tmp_path))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_posterior_draw_is_torch_s(pair):
    from ppsd3.utils.random import TorchGenerator

    theirs, ours = pair
    x = normal(1, 3, 64, 64)
    ours_z = ours.encode(paddle.to_tensor(x)).latent_dist.sample(TorchGenerator(5))
    theirs_z = theirs.encode(torch.tensor(x)).latent_dist.sample(torch.Generator("cpu").manual_seed(5))
    assert_close(ours_z, theirs_z)
