"""Contact sheets: pictures with their captions on one page."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..utils.errors import InputError

MARGIN = 8
LINE = 12  # pixels per line of text
LETTER = 6  # about the width of a letter of PIL's default font


def contact_sheet(images: Sequence[Any], captions: Sequence[str], columns: int = 4, side: int = 160) -> Image.Image:
    """Lays pictures out in rows, each above its caption.

    Args:
        images: uint8 arrays [H, W, 3] or PIL images; each is enlarged to ``side`` x ``side`` pixels.
        captions: one per picture; wrapped to the picture's width.
        columns: pictures per row.

    Raises:
        InputError: no pictures, or not one caption per picture.
    """
    if not len(images) or len(images) != len(captions):
        raise InputError(f"{len(images)} images for {len(captions)} captions: give one caption per image.")
    columns = min(columns, len(images))
    lines = [textwrap.wrap(caption, side // LETTER) for caption in captions]
    width, height = side + MARGIN, side + MARGIN + LINE * max(map(len, lines)) + 4
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for i, (image, text) in enumerate(zip(images, lines)):
        x, y = MARGIN + i % columns * width, MARGIN + i // columns * height
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST), (x, y))
        draw.rectangle((x - 1, y - 1, x + side, y + side), outline=(200, 200, 200))
        for k, line in enumerate(text):
            draw.text((x, y + side + 2 + k * LINE), line, fill="black", font=font)
    return sheet
