"""Floating-point operations of the networks, counted from their configurations; a multiplication and an addition are 2.

Counted is what the result needs and no more, so that superfluous work does not raise a share of the roofline: the last
block's text stream gives keys and values only. Norms, activations and other elementwise work are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .configurations import width

_FEED_FORWARD = 4  # times the width
_TIME_CHANNELS = 256  # sinusoids of the timestep


def transformer(config: Mapping[str, Any], image_tokens: int, text_tokens: int, batch: int) -> int:
    """One forward pass of SD3's transformer; ``config`` with ``num_layers``."""
    return batch * (
        _embeddings(config, image_tokens, text_tokens)
        + (config["num_layers"] - 1) * _block(config, image_tokens, text_tokens, last=False)
        + _block(config, image_tokens, text_tokens, last=True)
    )


def _embeddings(config, image_tokens, text_tokens):
    d, patch = width(config), config["patch_size"] ** 2
    vectors = _TIME_CHANNELS * d + config["pooled_projection_dim"] * d + 2 * d * d + 2 * d * d  # and the last norm's
    patches = image_tokens * patch * (config["in_channels"] + config["out_channels"]) * d
    return 2 * (vectors + patches + text_tokens * config["joint_attention_dim"] * d)


def _block(config, image_tokens, text_tokens, last):
    d, joined = width(config), image_tokens + text_tokens
    stream = 3 + 1 + 2 * _FEED_FORWARD  # Q, K, V; the output projection; the feed-forward: in units of D^2 per token
    products = image_tokens * stream + text_tokens * (2 if last else stream)
    modulation = 6 + (2 if last else 6)
    queries = image_tokens if last else joined
    return 2 * (products + modulation) * d * d + 2 * 2 * queries * joined * d


def vae(config: Mapping[str, Any], side: int, encode: bool) -> int:
    """Encoding or decoding one picture of ``side`` pixels."""
    widths, layers = list(config["block_out_channels"]), config["layers_per_block"]
    latent = config["latent_channels"]
    pixels, top = side * side, widths[-1]
    low = pixels // 4 ** (len(widths) - 1)
    middle = 2 * _residual(top, top, low) + 2 * (4 * low * top * top + 2 * low * low * top)
    if encode:
        ends, path, step = _conv(3, widths[0], pixels) + _conv(top, 2 * latent, low), widths, 1 / 4
    else:
        ends, path, layers, step = _conv(latent, top, low) + _conv(widths[0], 3, pixels), widths[::-1], layers + 1, 4
        pixels = low
    total, before = ends + middle, path[0]
    for i, channels in enumerate(path):
        total += _residual(before, channels, pixels) + (layers - 1) * _residual(channels, channels, pixels)
        before = channels
        if i < len(path) - 1:
            pixels = int(pixels * step)
            total += _conv(channels, channels, pixels)
    return total


def _conv(channels_in, channels_out, pixels, side=3):
    return 2 * side * side * channels_in * channels_out * pixels


def _residual(channels_in, channels_out, pixels):
    shortcut = 0 if channels_in == channels_out else _conv(channels_in, channels_out, pixels, side=1)
    return _conv(channels_in, channels_out, pixels) + _conv(channels_out, channels_out, pixels) + shortcut


def clip(config: Mapping[str, Any], tokens: int, batch: int) -> int:
    """CLIP's text tower; the causal half of the attention is counted."""
    d = config["hidden_size"]
    layer = 2 * tokens * d * (4 * d + 2 * config["intermediate_size"]) + 2 * tokens * tokens * d
    return batch * (config["num_hidden_layers"] * layer + 2 * d * config["projection_dim"])


def t5(config: Mapping[str, Any], tokens: int, batch: int) -> int:
    """T5's encoder with a gated feed-forward; ``config`` with ``num_layers``."""
    d, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    layer = 2 * tokens * d * (4 * inner + 3 * config["d_ff"]) + 4 * tokens * tokens * inner
    return batch * config["num_layers"] * layer


def gemm(shapes: Iterable[tuple[int, int, int]]) -> int:
    """Matrix products ``[M, K] x [K, N]`` of ``shapes`` (M, K, N)."""
    return sum(2 * m * k * n for m, k, n in shapes)
