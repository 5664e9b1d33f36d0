"""Patches, positions and conditioning against their formulas."""

import math

import numpy as np
import paddle
import pytest

from ppsd3.models.embeddings import CombinedTimestepTextProjEmbeddings, PatchEmbed, Timesteps
from ppsd3.utils.errors import InputError

D = 16


def patch_embed(**changes):
    paddle.seed(0)
    arguments = dict(height=8, width=8, patch_size=2, in_channels=3, embed_dim=D, pos_embed_max_size=10)
    return PatchEmbed(**{**arguments, **changes})


def position(row, column):
    """[D]: sine and cosine of the column, then of the row."""
    frequencies = [10000 ** (-i / (D // 4)) for i in range(D // 4)]
    return [wave(x * f) for x in (column, row) for wave in (math.sin, math.cos) for f in frequencies]


@pytest.mark.parametrize("height, width", [(10, 10), (4, 4), (3, 7), (10, 1)])
def test_positions_are_the_centre_of_the_table(height, width):
    embed = patch_embed()
    top, left = (10 - height) // 2, (10 - width) // 2
    step = 4 / 10  # patches of the native grid over the side of the table
    expected = [position((top + r) * step, (left + c) * step) for r in range(height) for c in range(width)]
    np.testing.assert_allclose(embed.positions(height, width)[0], expected, atol=2e-6)


def test_positions_without_a_table():
    embed = patch_embed(pos_embed_max_size=None)
    assert "pos_embed" not in embed.state_dict()
    native = [position(r, c) for r in range(4) for c in range(4)]
    np.testing.assert_allclose(embed.positions(4, 4)[0], native, atol=2e-6)
    stretched = [position(r * 4 / 2, c * 4 / 6) for r in range(2) for c in range(6)]
    np.testing.assert_allclose(embed.positions(2, 6)[0], stretched, atol=2e-6)


def test_positions_beyond_the_table():
    with pytest.raises(InputError, match=r"22 x 4 needs 11 x 2 patches.*10 x 10 \(pos_embed_max_size\).*smaller"):
        patch_embed()(paddle.zeros([1, 3, 22, 4]))


def test_patches_run_along_rows():
    embed = patch_embed()
    latent = paddle.randn([2, 3, 4, 6])
    tokens = embed(latent) - embed.positions(2, 3)
    for i, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        patch = latent[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = paddle.einsum("bchw,dchw->bd", patch, embed.proj.weight) + embed.proj.bias
        np.testing.assert_allclose(tokens[:, i], expected, atol=1e-5)


def test_wrong_channels():
    with pytest.raises(InputError, match=r"4 channels, the transformer takes 3 \(in_channels\)"):
        patch_embed()(paddle.zeros([1, 4, 8, 8]))


def test_timesteps_are_cosines_then_sines():
    timesteps = np.array([0.0, 1.0, 999.5, 1000.0], dtype="float32")
    angles = timesteps.astype("float64")[:, None] * 10000.0 ** (-np.arange(128) / 128)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(Timesteps(256)(paddle.to_tensor(timesteps)), expected, atol=1e-4)
    swapped = Timesteps(256, flip_sin_to_cos=False)(paddle.to_tensor(timesteps))
    np.testing.assert_allclose(swapped, np.roll(expected, 128, axis=1), atol=1e-4)
    shifted = Timesteps(8, downscale_freq_shift=1)(paddle.to_tensor(timesteps[1:2]))
    np.testing.assert_allclose(shifted[0, :4], np.cos(10000.0 ** (-np.arange(4) / 3)), atol=1e-6)


def test_conditioning_is_the_sum_of_time_and_text():
    paddle.seed(0)
    embed = CombinedTimestepTextProjEmbeddings(embedding_dim=D, pooled_projection_dim=6)
    timestep, pooled = paddle.to_tensor([3.5, 700.0]), paddle.randn([2, 6])
    expected = embed.timestep_embedder(embed.time_proj(timestep)) + embed.text_embedder(pooled)
    assert embed(timestep, pooled).shape == [2, D]
    np.testing.assert_array_equal(embed(timestep, pooled), expected)


def test_a_network_that_is_to_be_filled_computes_no_table(monkeypatch):
    from ppsd3.modeling_utils import is_to_be_filled, to_be_filled
    from ppsd3.models import embeddings

    def refuse(*arguments, **options):
        raise AssertionError("the table was computed")

    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "get_2d_sincos_pos_embed", refuse)
        with to_be_filled():
            embed = PatchEmbed(8, 8, 2, 4, 16, pos_embed_max_size=6)
        assert embed.pos_embed.shape == [1, 36, 16] and not is_to_be_filled()
    with paddle.LazyGuard():  # alone, as users use it: the table is a buffer, which has values
        embed = PatchEmbed(8, 8, 2, 4, 16, pos_embed_max_size=6)
    np.testing.assert_array_equal(embed.pos_embed[0].numpy(), embeddings.get_2d_sincos_pos_embed(16, 6, base_size=4))
