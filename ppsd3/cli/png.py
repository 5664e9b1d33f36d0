"""PNG files that know how they were drawn: their names, what is written into them, and what is read from strangers'."""

from __future__ import annotations

import collections
import io
import json
import os
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import IO, Any

from ..utils.errors import InputError
from ..utils.files import atomic_write, require_writable, write_new
from ..utils.images import open_regular
from ..utils.json_files import parse_json_object

SETTINGS_KEY = "ppsd3"  # JSON, for programs
PARAMETERS_KEY = "parameters"  # prose, where picture viewers of this field look

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 1 << 20  # of settings, which have some hundreds
_MOST_OF_A_NAME = 60, 180  # characters and bytes of a prompt in a file's name; file systems take 255 bytes


def output_files(output: str | None, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """The PNG files for each of ``seeds`` of the first prompt, then of the next, checked to be writable before any
    picture is drawn. What :func:`names_directory` is made if it is missing.

    Args:
        output: a file, or a directory. None: the current directory. In a directory, files are named after prompt and
            seed.
        prompts, seeds: one picture for each of both. Several to one file get ``-1``, ``-2``, ... before ``.png``.

    Raises:
        InputError: another extension than ``.png``, or a directory that is missing or cannot be written to.
        DiskError: its disk is full.
    """
    if names_directory(output):
        files = _files_in(output or ".", prompts, seeds)
    else:
        stem, extension = os.path.splitext(output or "")
        if extension.lower() != ".png":
            raise InputError(
                f"--output {output} does not end in .png, the format that carries the settings. Name a .png file, or a "
                f"directory: one that exists, or {output}/ with a slash to make it."
            )
        count = len(prompts) * len(seeds)
        files = [output or ""] if count == 1 else [f"{stem}-{i + 1}{extension}" for i in range(count)]
    for file in files:
        require_writable(file, "--output")
    return files


def _files_in(directory, prompts, seeds):
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {directory}: {error.strerror}. Name a directory that can be made.") from error
    slugs = [_slug(prompt) for prompt in prompts]
    counts = collections.Counter(slugs)
    numbered = [slug if counts[slug] == 1 else f"{slug}-{i + 1}" for i, slug in enumerate(slugs)]
    return [os.path.join(directory, f"{slug}-{seed}.png") for slug in numbered for seed in seeds]


def names_directory(output: str | None) -> bool:
    """Whether the option ``--output`` means a directory: none, one that exists, or a name that ends in a slash."""
    return output is None or os.path.isdir(output) or output.endswith(("/", os.sep))


def _slug(prompt):
    characters, most = _MOST_OF_A_NAME
    words = re.sub(r"[^\w]+", "-", prompt[: 100 * characters].lower()).strip("-_")[:characters]
    return words.encode()[:most].decode(errors="ignore").strip("-") or "picture"


def save_png(image: Any, path: str, settings: Mapping[str, Any], replace: bool = True) -> str:
    """Writes ``image`` (PIL) with ``settings`` (JSON values) as text chunks; all of the file or nothing.

    Args:
        replace: what is at ``path``. If not, a name that is taken gets ``-2``, ``-3``, ... before its extension.

    Returns:
        The file's name.
    """
    from PIL.PngImagePlugin import PngInfo

    info, content = PngInfo(), io.BytesIO()
    info.add_text(PARAMETERS_KEY, _encodable(describe(settings)))
    info.add_text(SETTINGS_KEY, _encodable(json.dumps(settings, ensure_ascii=False)))
    image.save(content, format="PNG", pnginfo=info)
    if not replace:
        return write_new(path, content.getbuffer())
    with atomic_write(path) as file:
        file.write(content.getbuffer())
    return path


def _encodable(text):
    """``text`` with escapes, which JSON can hold, in place of the bytes of a file's name that are no UTF-8."""
    return re.sub("[\ud800-\udfff]", lambda found: rf"\\u{ord(found[0]):x}", text)


def read_settings(path: str) -> dict[str, Any]:
    """The settings that ``save_png`` wrote into the file at ``path``. Of the file, nothing else is decoded.

    Returns:
        Name -> a number, a text, True or False, or a list of these.

    Raises:
        InputError: the file is no PNG of ppsd3's, or it is damaged, or has settings that are larger than any.
    """
    with open_regular(path, str(path)) as file:
        if file.read(len(_SIGNATURE)) != _SIGNATURE:
            raise InputError(f"{path} is no picture in PNG format. Name a PNG that `ppsd3 generate` wrote.")
        found = list(_texts(file, path))
    if not found:
        raise InputError(f"{path} does not say how it was drawn. Name a PNG that `ppsd3 generate` wrote.")
    if len(found) > 1:
        raise InputError(f"{path} says in {len(found)} places how it was drawn. Name a PNG as `ppsd3` wrote it.")
    settings = parse_json_object(found[0], f"{path} (its settings)", InputError)
    for name, value in settings.items():
        if not all(isinstance(item, (str, int, float)) for item in (value if isinstance(value, list) else [value])):
            raise InputError(f"{path}: its setting {name!r} is no number and no text. Name a PNG as `ppsd3` wrote it.")
    return settings


def _texts(file: IO[bytes], path: str) -> Any:
    """The content of each chunk of text called ``SETTINGS_KEY``, as bytes in UTF-8."""
    keyword = SETTINGS_KEY.encode() + b"\0"
    while True:
        head = file.read(8)
        if len(head) < 8:
            return  # a PNG that was cut off after its settings still has them
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        start = file.read(min(length, len(keyword))) if kind in _DECODERS else b""
        if start != keyword:
            file.seek(length - len(start) + 4, os.SEEK_CUR)
            continue
        if length > _MOST_BYTES:
            raise InputError(f"{path}: its settings have {length:,} bytes, and {_MOST_BYTES:,} are the most.")
        content = file.read(length - len(start))
        if file.read(4) != struct.pack(">I", zlib.crc32(kind + start + content)):
            raise InputError(f"{path}: its settings are damaged (the checksum differs). Copy the file again.")
        try:
            yield _DECODERS[kind](content)
        except (ValueError, IndexError, zlib.error) as error:
            raise InputError(f"{path}: its settings are damaged ({error}). Copy the file again.") from error


def _inflated(content):
    inflater = zlib.decompressobj()
    text = inflater.decompress(content, _MOST_BYTES + 1)
    if len(text) > _MOST_BYTES or not inflater.eof:
        raise ValueError(f"more than {_MOST_BYTES:,} bytes" if len(text) > _MOST_BYTES else "cut off")
    return text


def _international(content):
    _, _, rest = content[2:].partition(b"\0")  # the language
    text = rest.partition(b"\0")[2]  # after the translated keyword
    return _inflated(text) if content[0] else text


# Kinds of chunks -> their content after the keyword, in UTF-8.
_DECODERS = {
    b"tEXt": lambda content: content.decode("latin-1").encode(),
    b"zTXt": lambda content: _inflated(content[1:]).decode("latin-1").encode(),
    b"iTXt": _international,
}


def describe(settings: Mapping[str, Any]) -> str:
    """``settings`` in prose: the prompt, the negative prompt, then ``name: value`` pairs on one line."""
    rest = dict(settings)
    lines = [str(rest.pop("prompt", ""))]
    negative = rest.pop("negative_prompt", None)
    if negative:
        lines.append(f"Negative prompt: {negative}")
    pairs = (f"{name.replace('_', ' ')}: {value}" for name, value in rest.items() if value is not None)
    return "\n".join([*lines, ", ".join(pairs)])
