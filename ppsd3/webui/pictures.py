"""Pictures that a form prepares: what a ControlNet is shown, and the mask that was painted over a picture."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from ..utils.errors import InputError
from ..utils.images import FORMATS

_LOW, _HIGH = 40, 100  # gradients below and above which Canny's method drops and keeps an edge, of 8-bit greys
_MOST_PIXELS = 4096 * 4096
_STANDS_OUT = 40  # distance in RGB from the colour of the frame


def edges(picture: Image.Image) -> Image.Image:
    """White edges on black by Canny's method (1986): gradients of a smoothed picture, thinned along their direction,
    strong ones and the weak ones that touch them."""
    grey = np.asarray(picture.convert("L").filter(ImageFilter.GaussianBlur(1.4)), np.float32)
    padded = np.pad(grey, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    columns = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    dx, dy = rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]  # Sobel's
    size = np.hypot(dx, dy)
    direction = np.round(np.arctan2(dy, dx) / (np.pi / 4)).astype(int) % 4
    around = np.pad(size, 1)
    peak = np.zeros(size.shape, bool)
    for index, (down, right) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        after, before = _shifted(around, down, right), _shifted(around, -down, -right)
        peak |= (direction == index) & (size >= after) & (size > before)
    strong, weak = peak & (size >= _HIGH), peak & (size >= _LOW)
    while True:  # grow the strong ones into weak neighbours until nothing changes
        spread = np.pad(strong, 1)
        near = np.zeros_like(strong)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                near |= _shifted(spread, down, right)
        grown = near & weak
        if (grown == strong).all():
            return Image.fromarray((grown * np.uint8(255)).astype(np.uint8)).convert("RGB")
        strong = grown


def _shifted(padded: np.ndarray, down: int, right: int) -> np.ndarray:
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]


def silhouette(picture: Image.Image) -> Image.Image:
    """White where the picture differs from the colour of its frame, black elsewhere."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    frame = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
    ground = np.median(np.concatenate([part.reshape(-1, 3) for part in frame]), axis=0)
    apart = np.linalg.norm(pixels - ground, axis=-1) > _STANDS_OUT
    return Image.fromarray((apart * 255).astype(np.uint8)).convert("RGB")


# Name -> what it makes of a picture, in RGB.
PREPROCESSORS = {
    "as it is": lambda picture: picture.convert("RGB"),
    "edges": edges,
    "silhouette": silhouette,
    "inverted": lambda picture: ImageOps.invert(picture.convert("RGB")),
    "soft": lambda picture: picture.convert("RGB").filter(ImageFilter.GaussianBlur(max(picture.size) / 64)),
}


def accept_only_pictures() -> None:
    """Makes PIL in this process, which opens what people upload, refuse files that are not of ppsd3's formats and those
    of more than 4096 x 4096 pixels, before it decodes them."""
    Image.init()
    Image.ID[:] = [name for name in Image.ID if name in FORMATS]
    Image.MAX_IMAGE_PIXELS = _MOST_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # PIL's error begins at twice as many


def preprocess(name: str, picture: Image.Image | None) -> Image.Image | None:
    """What the ControlNet is shown of ``picture``; None without one.

    Raises:
        InputError: no such preprocessor, or a picture that is too large.
    """
    if name not in PREPROCESSORS:
        raise InputError(f"There is no preprocessor {name!r}. There are {', '.join(PREPROCESSORS)}.")
    if picture is None:
        return None
    if picture.width * picture.height > _MOST_PIXELS:
        raise InputError(f"The picture has {picture.size} pixels, and {_MOST_PIXELS:,} are the most. Make it smaller.")
    return PREPROCESSORS[name](picture)


def painted_mask(edited: Mapping[str, Any] | None) -> tuple[Image.Image | None, Image.Image | None]:
    """(picture, mask) of what Gradio's editor gives: white where any layer was painted on. The mask is None where
    nothing was."""
    if edited is None or edited.get("background") is None:
        return None, None
    background = edited["background"]
    painted = np.zeros((background.height, background.width), bool)
    for layer in edited.get("layers") or ():
        if layer is not None and layer.size == background.size:
            painted |= np.asarray(layer.convert("RGBA"))[..., 3] > 127
    mask = Image.fromarray((painted * 255).astype(np.uint8)) if painted.any() else None
    return background.convert("RGB"), mask
