"""Pictures as people hold them -> pictures as this package computes with them: files, links, PIL, arrays, tensors.

All pictures come in through :func:`read_pictures` or :func:`load_image`, from Python and from the command line:

==========================  =======================================================================================
what                        becomes
==========================  =======================================================================================
a camera's orientation      pixels turned upright (EXIF)
several frames              the first one
what is transparent         white; of a mask it is refused
PIL ``I;16``, ``I``         levels of 65535, rounded to 8 bits
PIL ``F``                   floats in [0, 1], rounded to 8 bits
every other PIL mode        ``RGB``, or ``L`` for masks
arrays                      float32: bool as 0 and 1, uint8 / 255, uint16 / 65535, floats in [0, 1] as they are
tensors                     likewise; colours may also be in [-1, 1], latents have any finite value
==========================  =======================================================================================
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import urllib.request
from collections.abc import Iterator, Sequence
from typing import IO, Annotated, Any, Callable

import numpy as np
import paddle
from PIL import Image

from .checking import Range, checks_arguments
from .errors import InputError
from .types import PathLike

Count = Annotated[int, Range(1)]

# What is read from files. EPS, which PIL has another program draw, and other formats that few have are not.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "HEIF", "JPEG2000", "ICO", "TGA")
MOST_PIXELS = 8192 * 8192  # of a file: in memory it takes up to 10 bytes for each
_MOST_BYTES = 1 << 28  # of a link's answer
_SECONDS = 30  # that a server may take
_ROUNDING = 1e-3  # by which floats may exceed their range
_BAND = 256  # rows

_ORIENTATION = 0x0112  # EXIF's tag -> how the pixels are turned
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE = {"bool": 1, "uint8": 255, "uint16": 65535}  # dtype -> level of white
# Channels -> modes of PIL that may be resized before they are converted, as diffusers does it.
_AS_THEY_ARE = {3: ("RGB",), 1: ("L", "RGB", "1", "P", "CMYK", "YCbCr", "HSV"), None: ("L", "RGB")}


@checks_arguments
def load_image(
    image: PathLike | Image.Image, convert_method: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """A picture in RGB, turned upright as its camera says; of several frames the first. What is transparent is white.

    Args:
        image: a path, an ``http://`` or ``https://`` link, or a PIL picture.
        convert_method: picture -> picture, in place of the conversion to RGB.

    Raises:
        InputError: no such file, no answer, not a picture, a damaged one, one of more than 8192 x 8192 pixels, or
            something else.
    """
    if isinstance(image, (str, os.PathLike)):
        source = os.fspath(image)
        picture = open_picture(source, source)
    elif isinstance(image, Image.Image):
        source, picture = "`image`", image
    else:
        raise InputError(f"`image` is a {type(image).__name__}; pass a path, a link or a PIL picture.")
    picture = as_rgb(picture, source) if convert_method is None else convert_method(upright(picture, source))
    return picture.copy() if picture is image else picture


def open_picture(path: str | IO[bytes], source: str) -> Image.Image:
    """The picture in a file or behind a link, upright, in the mode that it has there.

    Args:
        path: its name, or the file, open.
        source: what errors call it.

    Raises:
        InputError: see :func:`load_image`.
    """
    with _readable(source):
        Image.init()
        formats = [name for name in FORMATS if name in Image.OPEN]
        with _stream(path, source) as file:
            try:
                picture = Image.open(file, formats=formats)
            except (Image.UnidentifiedImageError, SyntaxError):
                file.seek(0)
                raise InputError(
                    f"{source} cannot be read as a picture: it is {_kind(file.read(1024))}. Check the path or the "
                    "link, or save it as PNG or JPEG."
                ) from None
            with picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise InputError(
                        f"{source} has {picture.width} x {picture.height} pixels, and a file may have {MOST_PIXELS:,}. "
                        "Make it smaller first."
                    )
                return upright(picture, source).copy()


def upright(picture: Image.Image, source: str) -> Image.Image:
    """``picture``, loaded; turned as its camera says, if it says so.

    Raises:
        InputError: it is damaged, or has no pixels.
    """
    if 0 in picture.size:
        raise InputError(f"{source} is a picture of {picture.width} x {picture.height} pixels. Pass one that has some.")
    with _readable(_named(source, picture)):
        picture.load()
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
        if turn is None:
            return picture
        turned = picture.transpose(turn)
    # without what says that it is to be turned
    turned.info = {name: value for name, value in picture.info.items() if name == "transparency"}
    return turned


def as_rgb(picture: Image.Image, source: str) -> Image.Image:
    """A PIL picture of any mode in RGB, upright, on white.

    Args:
        source: what errors call it.

    Raises:
        InputError: it is damaged, or its levels have no known range.
    """
    return _converted(picture, source, 3)


def read_pictures(name: str, images: Any, channels: int | None = 3, latent_channels: int | None = None) -> Any:
    """Pictures of any kind as PIL pictures, arrays or tensors with known values, see the table above: the one door.

    Args:
        name: of the argument, for errors.
        images: one, or a list or tuple of one kind: PIL pictures, arrays [H, W], [H, W, c] or [B, H, W, c], tensors of
            Paddle or torch [c, H, W] or [B, c, H, W]. Masks may be [H, W] and [B, H, W].
        channels: 3 for colours, 1 for masks, None for either.
        latent_channels: a tensor of that many channels is taken for latents.

    Returns:
        What ``images`` was, one or a list: PIL pictures in ``RGB`` (of masks in a mode of PIL that converts to ``L``),
        float32 arrays [H, W, c] or [B, H, W, c], floating Paddle tensors.

    Raises:
        InputError: another type, several kinds, other shapes or levels, an empty list, a damaged picture.
    """
    if not isinstance(images, (list, tuple)):
        return _read(f"`{name}`", images, channels, latent_channels)
    if not images:
        raise InputError(f"`{name}` is an empty list. Pass at least one picture.")
    read = [_read(f"`{name}`[{i}]", image, channels, latent_channels) for i, image in enumerate(images)]
    kinds = {
        kind.__name__ for kind in (Image.Image, np.ndarray, paddle.Tensor) if any(isinstance(i, kind) for i in read)
    }
    if len(kinds) > 1:
        raise InputError(f"`{name}` holds several kinds: {', '.join(sorted(kinds))}. Make them all PIL pictures.")
    shapes = {tuple(item.shape) for item in read if not isinstance(item, Image.Image)}
    if len(shapes) > 1:
        raise InputError(
            f"The pictures of `{name}` differ in size: {sorted(shapes)}. Resize them, or pass PIL pictures."
        )
    return read


def _read(source, image, channels, latent_channels):
    if isinstance(image, Image.Image):
        return _converted(image, source, channels)
    if isinstance(image, np.ndarray):
        return _array(image, source, channels)
    if type(image).__module__.partition(".")[0] == "torch" and hasattr(image, "detach"):
        bits = image.detach().cpu()
        image = paddle.to_tensor((bits.float() if bits.is_floating_point() else bits).numpy())
    if isinstance(image, paddle.Tensor):
        return _tensor(image, source, channels, latent_channels)
    hint = " Open it: ppsd3.utils.load_image(path)." if isinstance(image, (str, os.PathLike)) else ""
    raise InputError(f"{source} is a {type(image).__name__}; pass a PIL picture, an array or a tensor.{hint}")


# PIL


def _converted(picture, source, channels):
    picture = upright(picture, source)
    source = _named(source, picture)
    with _readable(source):
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            picture = _eight_bits(picture, source)
        if "transparency" in picture.info or picture.getbands()[-1] in "Aa":
            picture = _opaque(picture, source, channels)
        if picture.mode not in _AS_THEY_ARE[channels]:
            picture = picture.convert("L" if channels != 3 and picture.mode in ("L", "1") else "RGB")
        if channels == 1:
            _check_mask(np.asarray(picture.convert("L")).max() / 255, source)
    return picture


def _eight_bits(picture, source):
    """Grey levels of 16 or 32 bits as ``L`` (``LA`` where one of them is transparent)."""
    levels, transparent = np.asarray(picture), picture.info.get("transparency")
    if picture.mode == "F":
        grey = (_in_range(levels, source, 0) * 255).round().clip(0, 255).astype("uint8")
    else:
        least, most = int(levels.min()), int(levels.max())
        if picture.mode == "I" and (least < 0 or most > 65535 or 0 < most < 256):
            raise InputError(
                f"{source} has 32-bit levels (mode I) from {least} to {most}, and it is not known what white is. "
                "Convert them: to mode L if white is 255, to mode I;16 if it is 65535."
            )
        grey = (np.arange(65536) / 257).round().astype("uint8")[levels]
    result = Image.fromarray(grey)
    if isinstance(transparent, int):
        result.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype("uint8")))
    return result


def _opaque(picture, source, channels):
    """``picture`` on white, in RGB; in bands, for the sake of memory."""
    result = Image.new("RGB", picture.size)
    for top in range(0, picture.height, _BAND):
        band = picture.crop((0, top, picture.width, min(top + _BAND, picture.height)))
        band = (band.convert("LA") if band.mode == "La" else band).convert("RGBA")
        if channels == 1 and band.getextrema()[3][0] < 255:
            raise InputError(
                f"{source} is a mask with transparent parts, which may mean either. Make it opaque, white where the "
                "picture is to be drawn anew: mask.getchannel('A') is white where the mask is opaque, and "
                "ImageOps.invert() of that where it is transparent."
            )
        result.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), (0, top))
    return result


# Arrays and tensors


def _array(array, source, channels):
    shape = list(array.shape)
    if channels == 1 and len(shape) == 3 and shape[-1] in (3, 4):
        raise InputError(
            f"{source} has the shape {shape}, [H, W, {shape[-1]}], the shape of colours; a mask has one value for each "
            "pixel: [H, W]. Take one channel, mask[..., 0], or pass a PIL picture."
        )
    if len(shape) == 2 or (channels == 1 and len(shape) == 3 and shape[-1] != 1):
        array = array[..., None]
    wanted = {1: (1,), 3: (1, 3), None: (1, 3)}[channels]
    if array.ndim not in (3, 4) or array.shape[-1] not in wanted or array.size == 0:
        axes = "[H, W] or [B, H, W]" if channels == 1 else "[H, W, 3] or [B, H, W, 3]"
        hint = ""
        if array.ndim > 2 and array.shape[-3] == 3:
            hint = " Move the channels to the end: np.moveaxis(array, -3, -1)."
        raise InputError(f"{source} is an array of the shape {shape}; it has to be {axes}.{hint}")
    if array.dtype.name in _WHITE:
        array = array.astype("float32") / np.float32(_WHITE[array.dtype.name])
    elif array.dtype.kind == "f":
        array = _in_range(array, source, 0).astype("float32")
    else:
        raise InputError(
            f"{source} is an array of {array.dtype}, whose white is not known. Pass bool, uint8 (white is 255), uint16 "
            "(65535) or floats in [0, 1]: divide by the level of white."
        )
    if channels == 1:
        _check_mask(array.max(), source)
    return array.repeat(3, axis=-1) if channels == 3 and array.shape[-1] == 1 else array


def _tensor(tensor, source, channels, latent_channels):
    shape = list(tensor.shape)
    if channels == 1 and (len(shape) == 2 or (len(shape) == 3 and shape[0] != 1)):
        tensor = tensor.unsqueeze(len(shape) - 2)
    found = tensor.shape[-3] if tensor.ndim in (3, 4) else 0
    is_latents = latent_channels is not None and found == latent_channels and channels != 1
    if 0 in shape or not (is_latents or found in {1: (1,), 3: (1, 3), None: (1, 3)}[channels]):
        latents = "" if latent_channels is None or channels == 1 else f" (or latents, of {latent_channels} channels)"
        axes = "[H, W], [B, H, W] or [B, 1, H, W]" if channels == 1 else f"[3, H, W] or [B, 3, H, W]{latents}"
        hint = ""
        if channels != 1 and len(shape) > 2 and shape[-1] == 3:
            hint = " Move the channels to the front: paddle.moveaxis(tensor, -1, -3)."
        raise InputError(f"{source} is a tensor of the shape {shape}; it has to be {axes}.{hint}")
    kind = str(tensor.dtype).rpartition(".")[2].lower()
    if kind in _WHITE:
        tensor = tensor.astype("float32") / _WHITE[kind]
    elif "float" not in kind:
        raise InputError(
            f"{source} is a tensor of {kind}, whose white is not known. Pass floats in [0, 1]: divide by the level of "
            "white."
        )
    values = tensor.astype("float32")
    if is_latents:
        if not bool(paddle.isfinite(values).all()):
            raise InputError(f"{source} holds latents with NaN or infinity. Pass finite ones.")
        return tensor
    if bool(paddle.isnan(values).any()):  # which a minimum may pass over
        raise InputError(f"{source} holds NaN. Pass finite values.")
    low, high = float(values.min()), float(values.max())
    _in_range(np.asarray([low, high]), source, 0 if channels == 1 else -1)
    if -_ROUNDING <= low < 0:  # a negative value says that the range is [-1, 1]
        tensor = tensor.clip(min=0)
    if channels == 1:
        _check_mask(high, source)
    return paddle.concat([tensor] * 3, axis=tensor.ndim - 3) if channels == 3 and found == 1 else tensor


def _in_range(values, source, least):
    """``values``, if they are in [``least``, 1] but for rounding; what is a little below 0 of [0, 1] is 0."""
    low, high = float(values.min()), float(values.max())
    if not (low >= least - _ROUNDING and high <= 1 + _ROUNDING):  # NaN is in no range
        raise InputError(
            f"{source} has values from {low:.6g} to {high:.6g}; floats are in [{least}, 1]. Divide levels of 255 "
            "by 255, bring [-1, 1] to [0, 1] by x / 2 + 0.5, or cut off by clip."
        )
    return values.clip(0, None) if least == 0 > low else values


def _check_mask(most, source):
    """Refuses a mask of 0 and 1 where white is 255: it would mark nothing."""
    if 0 < most < 1.5 / 255:
        raise InputError(
            f"{source} marks nothing: its greatest value is {most * 255:.3g} of 255. White has to be 255, 1.0 or True: "
            "for a mask of 0 and 1, pass mask * 255 or mask.astype(bool)."
        )


# Files and links


@contextlib.contextmanager
def _readable(source: str) -> Iterator[None]:
    """Turns whatever PIL raises for a damaged file (SyntaxError, struct.error, EOFError, ...) into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{source} cannot be read as a picture: {error or type(error).__name__}. Check the path or the link, or "
            "save the picture again as PNG or JPEG."
        ) from error


def _named(source, picture):
    """``source`` with the name of the file that a PIL picture was opened from."""
    file = getattr(picture, "filename", "")
    return f"{source} ({file})" if file and str(file) not in source else source


def _stream(path, source):
    if not isinstance(path, str):
        return contextlib.nullcontext(path)
    if path.startswith(("http://", "https://")):
        request = urllib.request.Request(path, headers={"User-Agent": "ppsd3"})
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            content = answer.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise InputError(f"{source} answers with more than {_MOST_BYTES:,} bytes. Download and shrink it first.")
        return io.BytesIO(content)
    return open_regular(path, source)


def open_regular(path: str, source: str) -> IO[bytes]:
    """Opens a file that may be a stranger's, not a pipe or a device that would never end.

    Args:
        source: what errors call it.

    Raises:
        InputError: there is no such file, it is something else, or it may not be read.
    """
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character in the path
        named = source or "The image's path is empty"
        raise InputError(f"{named}: there is no such file. Check the path.") from None
    except OSError as error:
        raise InputError(f"{source} cannot be opened: {error.strerror}. Check the path and its permissions.") from error
    raise InputError(f"{source} is a directory or a device. Name a file.")


def _kind(head):
    """What a file is that is no picture, by its first bytes."""
    found = re.search(rb"^\s*$|<svg|<!doctype html|<html|^%pdf|^%!ps|^version https://git-lfs", head.lower())
    return {
        b"": "empty",
        b"<svg": "an SVG drawing, which has no pixels",
        b"<!doctype html": "a web page",
        b"<html": "a web page",
        b"%pdf": "a PDF document",
        b"%!ps": "a PostScript document",
        b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull`",
        None: f"none of {', '.join(FORMATS)}, or its start is damaged",
    }[found and found.group().strip()]


@checks_arguments
def make_image_grid(
    images: Sequence[Image.Image], rows: Count, cols: Count, resize: Annotated[int, Range(1, 1 << 16)] | None = None
) -> Image.Image:
    """One picture of ``rows`` times ``cols`` of the same size, row by row.

    Args:
        images: ``rows * cols`` of them.
        resize: side in pixels that each is brought to.

    Raises:
        InputError: another number of pictures.
    """
    if len(images) != rows * cols:
        raise InputError(
            f"`images` holds {len(images)} pictures, which cannot fill {rows} rows of {cols}. Pass as many as fit."
        )
    images = [image.resize((resize, resize)) for image in images] if resize else images
    width, height = images[0].size
    grid = Image.new("RGB", (cols * width, rows * height))
    for index, image in enumerate(images):
        grid.paste(image, (index % cols * width, index // cols * height))
    return grid
