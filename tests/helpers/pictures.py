"""Pictures of every mode of PIL with the levels that they stand for, and picture files of every kind."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIDE = 64
# Colours of the four quarters, and what of them a grey picture has.
COLOURS = np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]])
GREYS = np.uint8([[0, 100], [200, 255]])
ALPHAS = np.uint8([[255, 255], [0, 255]])  # the third quarter is transparent


def quarters(values):
    """Four values [2, 2, ...] as a picture's pixels [SIDE, SIDE, ...]."""
    return values.repeat(SIDE // 2, axis=0).repeat(SIDE // 2, axis=1)


def colours(mode="RGB"):
    return Image.fromarray(quarters(COLOURS)).convert(mode)


def greys(mode="L"):
    return Image.fromarray(quarters(GREYS)).convert(mode)


def with_alpha(mode, grey=False):
    picture = greys("LA") if grey else colours("RGBA")
    picture.putalpha(Image.fromarray(quarters(ALPHAS)))
    return picture.convert(mode)


def transparent_palette():
    picture = Image.fromarray(quarters(np.uint8([[0, 1], [2, 3]])), "L").convert("P")
    picture.putpalette(COLOURS.tobytes())
    picture.info["transparency"] = 2
    return picture


def palette_with_alpha():
    picture = colours("P").convert("PA")
    picture.putalpha(Image.fromarray(quarters(ALPHAS)))
    return picture


def sixteen_bit(mode):
    return Image.fromarray(quarters(GREYS.astype("uint16") * 257)).convert(mode)


def big_endian():
    levels = quarters(GREYS.astype(">u2") * 257)
    return Image.frombytes("I;16B", (SIDE, SIDE), levels.astype(">u2").tobytes())


def with_key(picture, key):
    """One colour is transparent, as in a PNG's tRNS chunk."""
    picture.info["transparency"] = key
    return picture


RGB = quarters(COLOURS)
GREY_RGB = np.repeat(quarters(GREYS)[..., None], 3, axis=-1)
ON_WHITE = quarters(np.where(ALPHAS[..., None] == 0, np.uint8(255), COLOURS))
GREY_ON_WHITE = np.repeat(quarters(np.where(ALPHAS == 0, np.uint8(255), GREYS))[..., None], 3, axis=-1)
BLACK_WHITE = np.repeat(quarters(np.where(GREYS < 128, np.uint8(0), np.uint8(255)))[..., None], 3, axis=-1)

# Name -> (picture, what it is in RGB, whether a part of it is transparent)
MODES = {
    "1": (greys().point(lambda v: 255 * (v >= 128)).convert("1"), BLACK_WHITE, False),
    "L": (greys(), GREY_RGB, False),
    "LA opaque": (greys("LA"), GREY_RGB, False),
    "LA": (with_alpha("LA", grey=True), GREY_ON_WHITE, True),
    "La": (with_alpha("LA", grey=True).convert("La"), GREY_ON_WHITE, True),
    "L with a key": (with_key(greys(), 200), GREY_ON_WHITE, True),
    "RGB with a key": (with_key(colours(), (0, 0, 255)), ON_WHITE, True),
    "P": (colours("P"), RGB, False),
    "P transparent": (transparent_palette(), ON_WHITE, True),
    "PA": (palette_with_alpha(), ON_WHITE, True),
    "RGB": (colours(), RGB, False),
    "RGBA opaque": (colours("RGBA"), RGB, False),
    "RGBA": (with_alpha("RGBA"), ON_WHITE, True),
    "RGBa": (with_alpha("RGBA").convert("RGBa"), ON_WHITE, True),
    "RGBX": (colours("RGBX"), RGB, False),
    "CMYK": (colours("CMYK"), RGB, False),
    "YCbCr": (colours("YCbCr"), RGB, False),
    "HSV": (colours("HSV"), RGB, False),
    "LAB": (colours("LAB"), RGB, False),
    "I": (sixteen_bit("I"), GREY_RGB, False),
    "I;16": (sixteen_bit("I;16"), GREY_RGB, False),
    "I;16B": (big_endian(), GREY_RGB, False),
    "F": (Image.fromarray(quarters(GREYS) / np.float32(255)), GREY_RGB, False),
}
TOLERANCE = {"YCbCr": 2, "HSV": 1, "LAB": 24}  # levels, of the conversions there and back


def chunk(kind, content):
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, rows=b"", depth=8, colour=2, more=b""):
    """The bytes of a PNG of any claimed size; ``rows`` is what is compressed, ``more`` are chunks before that."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def encoded(picture, kind="PNG", **options):
    """The bytes of a picture file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
