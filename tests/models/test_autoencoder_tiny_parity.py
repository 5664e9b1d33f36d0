"""AutoencoderTiny gives what diffusers' gives, from its files and into them."""

import numpy as np
import paddle
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from helpers import reference

from ppsd3 import AutoencoderTiny

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
    "config",
    [
        {"latent_channels": 16},
        {
            "act_fn": "silu",
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (16, 16),
            "num_encoder_blocks": (2, 1),
            "num_decoder_blocks": (1, 2),
        },
    ],
)
def test_encode_decode_forward(tmp_path, config):
    theirs = reference.fill(diffusers.AutoencoderTiny(**config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = AutoencoderTiny.from_pretrained(tmp_path / "theirs")
    x = np.tanh(np.random.RandomState(0).standard_normal((2, 3, 32, 48))).astype("float32")
    z = 2 * np.random.RandomState(1).standard_normal((2, theirs.config.latent_channels, 4, 6)).astype("float32")

    def close(found, expected):
        expected = expected.numpy()
        assert np.abs(found.numpy() - expected).max() <= 1e-5 * max(1, np.abs(expected).max())

    with torch.no_grad(), paddle.no_grad():
        close(ours.encode(paddle.to_tensor(x)).latents, theirs.encode(torch.from_numpy(x)).latents)
        close(ours.decode(paddle.to_tensor(z)).sample, theirs.decode(torch.from_numpy(z)).sample)
        close(ours(paddle.to_tensor(x)).sample, theirs(torch.from_numpy(x)).sample)
    ours.save_pretrained(tmp_path / "ours")
    back, expected = (
        net.state_dict() for net in (diffusers.AutoencoderTiny.from_pretrained(tmp_path / "ours"), theirs)
    )
    assert back.keys() == expected.keys() and all(torch.equal(back[name], expected[name]) for name in expected)
