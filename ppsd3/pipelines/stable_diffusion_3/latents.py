"""Latents at both ends of the denoising loop: from noise or a picture, and to a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import paddle

from ...models import AutoencoderKL
from ...ops.shapes import cast, repeat_rows
from ...utils.errors import InputError
from ...utils.random import randn
from .arguments import Generator, Tensor

if TYPE_CHECKING:
    from .call import Call


def prepare_latents(shape: list[int], dtype: Any, generator: Generator = None, latents: Tensor = None) -> paddle.Tensor:
    """The latents that denoising starts from.

    Args:
        shape: [B, C, H, W] of the latents.
        dtype: of the result, the transformer's.
        generator: None, a ``paddle.Generator``, a ``TorchGenerator``, or a list of B of them.
        latents: [B, C, H, W], given noise, used as it is.

    Raises:
        InputError: ``latents`` of another shape, or a list of generators of another length than B.
    """
    shape = [int(n) for n in shape]
    if latents is not None:
        if list(latents.shape) != shape:
            raise InputError(
                f"`latents` has the shape {list(latents.shape)}, but this call draws {shape} (pictures, channels, "
                "height and width in latent units). Pass latents of that shape, or change height, width or the batch."
            )
        return latents.astype(dtype)
    _check_count(generator, shape[0])
    return randn(shape, generator=generator, dtype=dtype)


def decode_latents(vae: AutoencoderKL, latents: paddle.Tensor) -> paddle.Tensor:
    """latents [B, C, H, W] as the transformer knows them -> picture [B, 3, 8H, 8W] in about [-1, 1].

    The VAE may have another dtype than the transformer.
    """
    return vae.decode(vae.unscale_latents(cast(latents, vae.dtype)), return_dict=False)[0]


def encode_picture(call: Call, pixels: paddle.Tensor) -> paddle.Tensor:
    """Pixels [b, 3, 8H, 8W] in [-1, 1], or latents [b, C, H, W] as they are, -> scaled latents [B, C, H, W].

    The VAE's posterior is sampled with the call's generator as diffusers samples it: one draw for each picture given;
    of a list of generators, the first b draw one each.
    """
    pipe = call.pipe
    if pixels.shape[1] == pipe.latent_channels:
        wanted = call.latents_shape(pipe.latent_channels)[2:]
        if pixels.shape[2:] != wanted:
            raise InputError(f"`image` is latents of the size {pixels.shape[2:]}, and the picture's are {wanted}.")
        return match_batch(pixels, call, "image")
    generator = _generators_of_rows(call, pixels.shape[0])
    with pipe.using("vae") as vae:
        latents = vae.scale_latents(vae.encode(pixels.astype(vae.dtype)).latent_dist.sample(generator))
    return match_batch(latents, call, "image")


def skip_encoding(call: Call, rows: int) -> None:
    """Moves the call's generator on as ``encode_picture`` of so many images does, which diffusers encodes and never
    reads."""
    vae = call.pipe.vae
    if getattr(vae, "samples_latents", True):
        shape = [rows, *call.latents_shape(call.pipe.latent_channels)[1:]]
        randn(shape, generator=_generators_of_rows(call, rows), dtype=vae.dtype)


def _generators_of_rows(call, rows):
    generator = call.arguments.generator
    _check_count(generator, call.batch)
    return generator[:rows] if isinstance(generator, (list, tuple)) else generator


def _check_count(generator, batch):
    if isinstance(generator, (list, tuple)) and len(generator) != batch:
        raise InputError(
            f"`generator` is a list of {len(generator)} generators, but this call draws {batch} pictures (prompts x "
            "num_images_per_prompt). Pass one generator for each picture, or a single one for all."
        )


def mix(scheduler: Any, clean: paddle.Tensor, timestep: paddle.Tensor, noise: paddle.Tensor) -> paddle.Tensor:
    """``clean`` with the noise level of ``timestep [1]``."""
    return scheduler.scale_noise(clean, timestep.expand([clean.shape[0]]), noise)


def match_batch(rows: paddle.Tensor, call: Call, name: str) -> paddle.Tensor:
    """One row for each picture to be drawn: from one for all, one for each prompt, or as many as that.

    Raises:
        InputError: another number.
    """
    given, prompts, each = rows.shape[0], call.prompts.batch, call.arguments.num_images_per_prompt
    if given == call.batch:
        return rows
    if given not in (1, prompts):
        raise InputError(
            f"`{name}` holds {given} pictures, but there are {prompts} prompts with {each} pictures each. Pass 1, "
            f"{prompts} or {call.batch}."
        )
    return repeat_rows(rows, call.batch // given)
