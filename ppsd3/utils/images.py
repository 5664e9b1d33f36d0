"""Pictures from files and links, and several of them in one."""

from __future__ import annotations

import io
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Callable

from PIL import Image, ImageOps

from .errors import InputError
from .types import PathLike

_SECONDS = 30  # that a server may take


def load_image(
    image: PathLike | Image.Image, convert_method: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """A picture in RGB, turned upright as its camera says.

    Args:
        image: a path, an ``http://`` or ``https://`` link, or a PIL picture.
        convert_method: picture -> picture, in place of the conversion to RGB.

    Raises:
        InputError: no such file, no answer, not a picture, or something else.
    """
    if isinstance(image, (str, os.PathLike)):
        image = _opened(os.fspath(image))
    elif not isinstance(image, Image.Image):
        raise InputError(f"image is a {type(image).__name__}; pass a path, a link or a PIL picture.")
    image = ImageOps.exif_transpose(image) or image
    return image.convert("RGB") if convert_method is None else convert_method(image)


def _opened(path):
    try:
        if path.startswith(("http://", "https://")):
            request = urllib.request.Request(path, headers={"User-Agent": "ppsd3"})
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                return Image.open(io.BytesIO(answer.read()))
        return Image.open(path)
    except (OSError, urllib.error.URLError) as error:
        raise InputError(f"No picture can be read from {path}: {error}. Check the path or the link.") from error


def make_image_grid(images: Sequence[Image.Image], rows: int, cols: int, resize: int | None = None) -> Image.Image:
    """One picture of ``rows`` times ``cols`` of the same size, row by row.

    Args:
        images: ``rows * cols`` of them.
        resize: side in pixels that each is brought to.

    Raises:
        InputError: another number of pictures.
    """
    if len(images) != rows * cols or not images:
        raise InputError(
            f"{len(images)} pictures cannot fill {rows} rows of {cols}. Pass as many as fit, at least one."
        )
    images = [image.resize((resize, resize)) for image in images] if resize else images
    width, height = images[0].size
    grid = Image.new("RGB", (cols * width, rows * height))
    for index, image in enumerate(images):
        grid.paste(image, (index % cols * width, index // cols * height))
    return grid
