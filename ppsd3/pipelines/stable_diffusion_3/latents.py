"""The ends of the denoising loop: noise in, picture out."""

import paddle

from ...utils.errors import InputError
from ...utils.random import randn


def prepare_latents(shape, dtype, generator=None, latents=None):
    """The latents that denoising starts from.

    Args:
        shape (list of int): [B, C, H, W] of the latents.
        dtype: of the result, the transformer's.
        generator: None, a ``paddle.Generator``, a ``TorchGenerator``, or a list of B of them.
        latents (Tensor [B, C, H, W] or None): given noise, used as it is.

    Raises:
        InputError: ``latents`` of another shape, or a list of generators of another length than B.
    """
    shape = [int(n) for n in shape]
    if latents is not None:
        if not isinstance(latents, paddle.Tensor):
            raise InputError(f"`latents` is a {type(latents).__name__}; pass a paddle.Tensor (paddle.to_tensor).")
        if list(latents.shape) != shape:
            raise InputError(
                f"`latents` has the shape {list(latents.shape)}, but this call draws {shape} (pictures, channels, "
                "height and width in latent units). Pass latents of that shape, or change height, width or the batch."
            )
        return latents.astype(dtype)
    if isinstance(generator, (list, tuple)) and len(generator) != shape[0]:
        raise InputError(
            f"`generator` is a list of {len(generator)} generators, but this call draws {shape[0]} pictures (prompts x "
            "num_images_per_prompt). Pass one generator for each picture, or a single one for all."
        )
    return randn(shape, generator=generator, dtype=dtype)


def decode_latents(vae, latents):
    """latents [B, C, H, W] as the transformer knows them -> picture [B, 3, 8H, 8W] in about [-1, 1]."""
    return vae.decode(vae.unscale_latents(latents), return_dict=False)[0]
