"""A picture as a prompt -> what the transformer's IP-adapter reads beside the text.

::

    picture -> feature_extractor -> pixels [B, 3, 384, 384] -> image_encoder -> the states before its last layer
    [B, 729, 1152] -> for each step, by the IP-adapter: picture tokens [B, 64, D]

(sizes of the published models). The negative prompt's picture is all zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import paddle

from ...transformers.siglip.image_processor import as_pictures
from ...utils.errors import InputError
from ...utils.finite import check_finite
from ..call_signature import Pictures
from .arguments import Tensor
from .latents import match_batch

if TYPE_CHECKING:
    from .base import StableDiffusion3Base
    from .call import Call


def check(call: Call) -> None:
    """A call that has a picture, or its features, has one of the two, and an IP-adapter that reads it.

    Raises:
        InputError
    """
    image, embeds = call.arguments.ip_adapter_image, call.arguments.ip_adapter_image_embeds
    if image is not None or embeds is not None:
        _check_given(call.pipe, image, embeds)


def _check_given(pipe, image, embeds):
    name = "ip_adapter_image" if embeds is None else "ip_adapter_image_embeds"
    if pipe.ip_adapter is None:
        raise InputError(f"`{name}` needs an IP-adapter. Load one with pipe.load_ip_adapter(), or leave it out.")
    if image is not None and embeds is not None:
        raise InputError("Both `ip_adapter_image` and `ip_adapter_image_embeds` are given. Pass one of the two.")
    if embeds is None:
        readable(pipe, image, "ip_adapter_image")


def readable(pipe: StableDiffusion3Base, image: Pictures, name: str) -> Pictures:
    """What the feature extractor takes of the argument ``name``: PIL pictures in RGB; a tensor is what it has given.

    Raises:
        InputError: no pictures, or the pipeline lacks what they are encoded by, or the adapter reads something else.
    """
    encoder = pipe.image_encoder
    missing = ["image_encoder"] if encoder is None else []
    if pipe.feature_extractor is None and not isinstance(image, paddle.Tensor):
        missing.append("feature_extractor")
    if encoder is None or missing:
        raise InputError(
            f"A picture for the IP-adapter needs {' and '.join(f'`{name}`' for name in missing)}, which the pipeline "
            "has not. Let load_ip_adapter() load them, set them, or pass `ip_adapter_image_embeds`."
        )
    width = encoder.config.hidden_size
    if pipe.ip_adapter is not None and width != pipe.ip_adapter.embed_dim:
        raise InputError(
            f"The image encoder gives features of width {width}, and the IP-adapter reads {pipe.ip_adapter.embed_dim}. "
            "Use the image encoder that it was trained with."
        )
    if not isinstance(image, paddle.Tensor):
        return as_pictures(image, name=name)
    return image


def encode_image(pipe: StableDiffusion3Base, image: Pictures, name: str = "image") -> paddle.Tensor:
    """Features [b, T, E] of pictures, in the transformer's dtype; see ``StableDiffusion3Pipeline.encode_image``.

    Args:
        name: of the argument, for errors.
    """
    image, extract = readable(pipe, image, name), cast("Any", pipe.feature_extractor)
    pixels = image if isinstance(image, paddle.Tensor) else extract(image).pixel_values
    with pipe.using("image_encoder") as encoder:
        features = encoder(pixels, output_hidden_states=True).hidden_states[-2]
    check_finite(("image_encoder", features))
    return features.astype(pipe.dtype)


def prepare_image_embeds(
    pipe: StableDiffusion3Base, image: Pictures, embeds: paddle.Tensor | list[paddle.Tensor] | None, guided: bool
) -> tuple[paddle.Tensor, Tensor]:
    """``(positive, negative or None)``, each [b, T, E], of a picture or of features that are given.

    Raises:
        InputError: neither is given, or features of another shape.
    """
    if embeds is None:
        if image is None:
            raise InputError("Neither `ip_adapter_image` nor `ip_adapter_image_embeds` is given. Pass one of the two.")
        positive = encode_image(pipe, image, "ip_adapter_image")
        return positive, paddle.zeros_like(positive) if guided else None
    embeds = _checked(pipe, embeds, guided).astype(pipe.dtype)
    negative, positive = embeds.chunk(2) if guided else (None, embeds)
    return positive, negative


def _checked(pipe, embeds, guided):
    if isinstance(embeds, (list, tuple)) and len(embeds) == 1:  # the form that several adapters have elsewhere
        embeds = embeds[0]
    if not isinstance(embeds, paddle.Tensor):
        raise InputError(f"`ip_adapter_image_embeds` is a {type(embeds).__name__}; pass one tensor [B, T, E].")
    width = None if pipe.ip_adapter is None else pipe.ip_adapter.embed_dim
    if embeds.ndim != 3 or (width is not None and embeds.shape[-1] != width):
        raise InputError(
            f"`ip_adapter_image_embeds` has the shape {list(embeds.shape)}; the IP-adapter reads "
            f"[B, T, {width or 'E'}]."
        )
    if guided and embeds.shape[0] % 2:
        raise InputError(
            f"`ip_adapter_image_embeds` has {embeds.shape[0]} rows; with guidance they are [negative, positive], as "
            "many of each. The negative ones are zeros: paddle.concat([paddle.zeros_like(embeds), embeds])."
        )
    return embeds


def read_picture(call: Call, guided: bool) -> tuple[Tensor, Tensor]:
    """``(positive, negative)`` features, a row for each picture to be drawn; None where there are none, or the adapter
    does not act.

    Raises:
        InputError: the number of pictures fits neither the prompts nor the pictures to be drawn.
    """
    image, embeds = call.arguments.ip_adapter_image, call.arguments.ip_adapter_image_embeds
    if (image is None and embeds is None) or not call.pipe.is_ip_adapter_active:
        return None, None
    return _read_given(call, image, embeds, guided)


def _read_given(call, image, embeds, guided):
    name = "ip_adapter_image" if embeds is None else "ip_adapter_image_embeds"
    halves = prepare_image_embeds(call.pipe, image, embeds, guided)
    positive, negative = (None if half is None else match_batch(half, call, name) for half in halves)
    return positive, negative
