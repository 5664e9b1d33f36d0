"""What a file is, by its first bytes; of a safetensors file, whether it is whole and what has such tensors.

At most the header of a safetensors file is read, and of others some KB; nothing is unpacked or unpickled.
"""

from __future__ import annotations

import os
import struct
from typing import Any, BinaryIO

from . import signatures
from .errors import ConfigError
from .json_files import parse_json, parse_json_object
from .pipeline_index import named_class
from .tensor_recognition import Found, of_class, of_tensors, use_diffusers
from .weight_names import PICKLE_SUFFIXES

_HEAD = 1 << 16  # bytes that are read of a file
_HEADER = 1 << 21  # the longest safetensors header that is read; published ones have up to 1 MB
_SHOWN = 80  # characters of a stranger's text
_SHORT = 1024  # bytes of a text that a server may have sent in place of a file
_LONGEST = 100_000_000  # bytes of a header that the format admits
_AGAIN = "Download or write it again."
_ITSELF = "Download the file itself; on a hub's page that is the link `download` or `resolve`, not `blob`."


def of_file(path: str, whole: bool = True) -> Found | None:
    """What the file at ``path`` is, None for what is not known.

    Args:
        whole: also say what a safetensors file without fault has tensors of.
    """
    size, lower = os.path.getsize(path), path.lower()
    if lower.endswith(signatures.UNFINISHED) or os.path.exists(path + ".aria2"):
        return Found("is a download that has not ended", "Let it end, or download the file again.")
    with open(path, "rb") as file:
        head = file.read(_HEAD)
        if not head.strip() and size < _HEAD:
            return Found("is empty", _AGAIN)
        if _is_zero(file, head, size):
            return Found(f"has {size:,} bytes, all of them zero", f"Its download has failed. {_AGAIN}")
        if head[8:9] == b"{":
            return _safetensors(file, head, size, whole)
        found = _by_magic(head) or _archive(head, lower) or _markup(head, size) or by_name(lower)
        return found or _short_text(head, lower, size)


def shown(text: object) -> str:
    """A stranger's text in one line, without control characters, and cut."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(text)[: 2 * _SHOWN])
    plain = " ".join(plain.split())
    return plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "..."


def pickle(path: str) -> Found:
    """What is said of a pickle, or of a file with a pickle's name."""
    if path.lower().endswith(".pdparams"):
        return Found(
            "is a pickle, as Paddle writes it. Opening one can run code, so ppsd3 loads safetensors only",
            "`ppsd3 convert DIRECTORY NEW_DIRECTORY` converts its directory (the pipeline's, if it is in one) without "
            "running anything; for a LoRA: `ppsd3 convert FILE NEW_FILE.safetensors`.",
        )
    return Found(
        "is a pickle (torch or Paddle archive). Reading one can run code, so ppsd3 does not open it",
        "Use the repository's safetensors file, or convert this one where you trust it: load it with torch.load(path, "
        "weights_only=True) or paddle.load and save it with safetensors.torch.save_file or "
        "safetensors.numpy.save_file.",
    )


def _is_zero(file: BinaryIO, head: bytes, size: int) -> bool:
    """Whether ``head`` and some more places of an open file are zero."""
    if size < _SHORT or head.strip(b"\0"):
        return False
    for position in (size // 4, size // 2, size - _HEAD):
        file.seek(max(position, 0))
        if file.read(_HEAD).strip(b"\0"):
            return False
    return True


def _by_magic(head: bytes) -> Found | None:
    if head.startswith(b"GGUF"):
        return _gguf(head)
    if head[:1] == b"\x08" and any(word in head[:64] for word in (b"onnx", b"pytorch")):
        return by_name(".onnx")
    is_map = head[:1] in (b"\xde", b"\xdf") or 0x81 <= head[0] <= 0x8F  # in msgpack
    if is_map and any(word in head[:256] for word in (b"params", b"kernel")):
        return by_name(".msgpack")
    for start, magic, what, remedy in signatures.MAGICS:
        if head[start : start + len(magic)] == magic:
            return Found(f"is {what}", remedy)
    return None


def _archive(head: bytes, lower: str) -> Found | None:
    """A pickle or a zip, which torch's files are too."""
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return pickle(lower)
    if not head.startswith(b"PK\x03\x04"):
        return None
    first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if first.endswith(b".npy"):
        return Found("is a numpy archive (.npz)", "Save its arrays with safetensors.numpy.save_file, and load that.")
    if first.endswith((b"data.pkl", b"/version", b"/byteorder", b".format_version")) or lower.endswith(PICKLE_SUFFIXES):
        return pickle(lower)
    return Found("is a zip archive", signatures.UNPACK)


def _markup(head: bytes, size: int) -> Found | None:
    """Texts that were saved in place of a checkpoint, and those that describe one."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:512].lower()
    if start.startswith(b"version https://git-lfs"):
        return Found(
            "is a Git LFS pointer, not the file", "Run `git lfs pull` in the repository, or download the file."
        )
    if start.startswith((b"<!doctype html", b"<html", b"<head")) or (start.startswith(b"<?xml") and b"<html" in start):
        return Found("is a web page (HTML), saved in place of the file", _ITSELF)
    if start.startswith((b"<?xml", b"<error")) and b"<error" in start:
        return Found("is the message of a server, saved in place of the file", _ITSELF)
    if start.startswith(b"<?xml") and b"<net" in start:
        return Found("is a model for OpenVINO (IR)", signatures.SAFETENSORS)
    if start.startswith(b"{"):
        return _json(head, size)
    return None


def _short_text(head: bytes, lower: str, size: int) -> Found | None:
    """What a server answers in plain words, e.g. "Entry not found"."""
    if size > _SHORT or lower.endswith((".txt", ".md", ".json", ".model")) or not head.isascii():
        return None
    if any(byte < 32 and byte not in b"\t\r\n" for byte in head):
        return None
    return Found(f"is a text ({shown(head.decode())!r}), saved in place of the file", _ITSELF)


def _json(head: bytes, size: int) -> Found | None:
    content = parsed(head) if size <= len(head) else None
    if content is None:
        return None
    if "weight_map" in content:
        return Found("is the list of a checkpoint's shards", "Pass its directory to from_pretrained.")
    name = named_class(content)
    if name is not None:
        remedy = "Pass its directory to from_pretrained."
        return of_class(name) or Found(f"is a configuration ({shown(name)})", remedy, "configuration")
    said = next((content[key] for key in ("error", "errors", "message", "detail") if content.get(key)), None)
    if said is None:
        return None
    return Found(f"is the message of a server ({shown(said)!r}), saved in place of the file", _ITSELF)


def parsed(text: bytes) -> dict[str, Any] | None:
    """The JSON object in a few KB, or None."""
    try:
        content = parse_json(text, "a file")
    except ConfigError:
        return None
    return content if isinstance(content, dict) else None


def by_name(lower: str) -> Found | None:
    """What the end of a name, in lower case, tells."""
    for suffix, (what, remedy) in signatures.SUFFIXES.items():
        if lower.endswith(suffix):
            return Found(f"is {what}", remedy)
    return pickle(lower) if lower.endswith(PICKLE_SUFFIXES) else None


# ----------------------------------------------------------------------------------------------------------------- GGUF


def _gguf(head: bytes) -> Found:
    """A GGUF file, with the architecture and the quantization that its header names."""
    said = _gguf_values(head)
    architecture, kind = said.get("general.architecture"), said.get("general.file_type")
    facts = [] if architecture is None else [f"architecture {shown(architecture)}"]
    if kind in signatures.GGUF_TYPES:
        facts.append(f"quantized as {signatures.GGUF_TYPES[kind]}")
    what = f"is a GGUF file, for llama.cpp and ComfyUI{' (' + ', '.join(facts) + ')' if facts else ''}"
    name = signatures.GGUF_MODELS.get(architecture or "")
    if name is not None:
        return Found(what, use_diffusers(signatures.model(name)))
    return Found(f"{what}, which ppsd3 does not read yet", signatures.ORIGINAL)


def _gguf_values(head: bytes) -> dict[str, Any]:
    """The numbers and texts at the beginning of a GGUF header, as far as ``head`` goes."""
    numbers = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    values: dict[str, Any] = {}
    position = 24  # magic, version, number of tensors, number of values

    def take(code):
        nonlocal position
        position += struct.calcsize("<" + code)
        return struct.unpack_from("<" + code, head, position - struct.calcsize("<" + code))[0]

    def text():
        nonlocal position
        length = take("Q")
        position += length
        return head[position - length : position].decode("utf-8", "replace")

    while position < len(head):
        try:
            key, kind = text(), take("I")
            if kind != 8 and kind not in numbers:  # an array; what is wanted comes before them
                break
            values[key] = text() if kind == 8 else take(numbers[kind])
        except (struct.error, OverflowError):  # the header goes on after `head`
            break
    return values


# ---------------------------------------------------------------------------------------------------------- safetensors


def _safetensors(file: BinaryIO, head: bytes, size: int, whole: bool) -> Found | None:
    """A safetensors file that is not whole, or one for something else."""
    length = int.from_bytes(head[:8], "little")
    if length > size - 8:
        missing = f"at least {8 + length - size:,} bytes are missing"
        return Found(f"is no complete safetensors file: {missing}", _AGAIN) if length <= _LONGEST else None
    if length > _HEADER:
        return None
    file.seek(8)
    try:
        header = parse_json_object(file.read(length), "a header")
        header.pop("__metadata__", None)
        tensors = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        stop = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ConfigError, LookupError, TypeError):
        return None  # the reader says what is wrong with it
    if stop > size:
        missing = f"{stop - size:,} of {stop:,} bytes are missing"
        return Found(f"is no complete safetensors file: {missing}", _AGAIN)
    return of_tensors(tensors) if whole else None
