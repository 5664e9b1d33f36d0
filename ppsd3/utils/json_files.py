"""The one reader of JSON, and of text in small files: size, depth, encoding and kind are checked before the content is.

Every file here may come from a stranger. Whatever is wrong with one ends in an error of ours that names the file.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import itertools
import json
import os
import stat
from collections.abc import Iterator
from typing import Any

from .errors import CheckpointNotFoundError, ConfigError, PPSD3Error
from .types import PathLike

# Published configurations have some kilobytes, lists of shards up to a megabyte, T5's tokenizer.json 2.4 MB, and those
# of the largest vocabularies 35 MB. Parsed, JSON takes up to thirty times its bytes.
MOST_BYTES = 16 << 20
MOST_BYTES_OF_VOCABULARY = 64 << 20
_MOST_LEVELS = 64  # of arrays and objects in one another; a tokenizer.json has 8
_MOST_DIGITS = 100  # Python refuses numbers of 4,300 since 3.11, and takes seconds for those of 10^5 before
_SHOWN = 60


def read_json(
    path: PathLike, purpose: str, most_bytes: int = MOST_BYTES, error: type[PPSD3Error] = ConfigError
) -> dict[str, Any]:
    """The JSON object in the file ``path``.

    Args:
        purpose: what the file is for, in errors: "the configuration of a VAE".
        most_bytes: a larger file is refused.
        error: type of the errors about the content.

    Raises:
        CheckpointNotFoundError: no such file.
        ConfigError (``error``): it cannot be read, or is not JSON in UTF-8 with an object at the top, each of whose
            keys is there once; or it is larger, or nested deeper, than any such file.
    """
    try:
        return parse_json_object(read_small_file(path, purpose, most_bytes, error), f"{path} ({purpose})", error)
    except PPSD3Error as problem:
        from .recognition import explained

        if os.path.exists(path) and not os.path.isfile(path):
            raise
        raise explained(problem, path, "configuration", f"{path} ({purpose})") from problem


def parse_json_object(content: str | bytes, source: str, error: type[PPSD3Error] = ConfigError) -> dict[str, Any]:
    """:func:`parse_json` where an object is expected at the top."""
    value = parse_json(content, source, error)
    if not isinstance(value, dict):
        raise error(f"{source} holds a {type(value).__name__}, not a JSON object. Download or write it again.")
    return value


def parse_json(content: str | bytes, source: str, error: type[PPSD3Error] = ConfigError) -> Any:
    """The value that the JSON ``content`` holds.

    ``NaN``, ``Infinity`` and ``-Infinity`` are numbers, as Python's programs write them.

    Args:
        source: what errors call it.
        error: type of the errors.
    """
    text = _decoded(content, source, error)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            [(twice, _)] = collections.Counter(key for key, _ in pairs).most_common(1)
            raise error(f"{source} has the key {_short(twice)} twice in one object. Remove one, or write it again.")
        return found

    def integer(digits: str) -> int:
        if len(digits) > _MOST_DIGITS:
            raise error(f"{source} has a number of {len(digits)} digits. Download or write it again.")
        return int(digits)

    try:
        with _no_garbage():
            value = json.loads(text, object_pairs_hook=once, parse_int=integer)
        if _is_deeper(value, _MOST_LEVELS):
            raise RecursionError
        if "\\u" in text:  # half a surrogate pair is no text
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise error(f"{source} is nested deeper than {_MOST_LEVELS} levels. Download or write it again.") from None
    except UnicodeEncodeError as cause:
        raise error(f"{source} has text that is not Unicode ({cause.reason}). Download or write it again.") from cause
    except json.JSONDecodeError as cause:
        raise error(f"{source} is not valid JSON: {cause}. Download or write it again.") from cause
    return value


def read_small_text(
    path: PathLike, purpose: str, most_bytes: int = MOST_BYTES, error: type[PPSD3Error] = ConfigError
) -> str:
    """The text (UTF-8, with or without a byte order mark) of the file ``path``; arguments as of :func:`read_json`."""
    return _decoded(read_small_file(path, purpose, most_bytes, error), f"{path} ({purpose})", error)


def read_small_file(
    path: PathLike, purpose: str, most_bytes: int = MOST_BYTES, error: type[PPSD3Error] = ConfigError
) -> bytes:
    """The bytes of the file ``path``; arguments as of :func:`read_json`.

    Raises:
        CheckpointNotFoundError: no such file.
        ConfigError (``error``): a directory, a device, a file without permission, or larger than ``most_bytes``.
    """
    source = f"{os.fsdecode(path)} ({purpose})"
    try:
        # Neither waits for the other end of a pipe.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
            raise error(f"{source} is {kind}, not a file. Pass the path of the file.")
        if status.st_size <= most_bytes:
            with open(path, "rb") as file:
                content = file.read(most_bytes + 1)
            if len(content) <= most_bytes:
                return content
    except (FileNotFoundError, NotADirectoryError, ValueError) as cause:  # ValueError: a null character in the path
        if isinstance(cause, PPSD3Error):
            raise
        raise CheckpointNotFoundError(
            f"{path} does not exist; it should hold {purpose}. Check the path, or pass `subfolder=` if it is deeper."
        ) from None
    except OSError as cause:
        raise error(f"{source} cannot be read: {cause.strerror}. Check its permissions and the disk.") from cause
    raise error(
        f"{source} has {status.st_size:,} bytes, more than any such file ({most_bytes:,}). "
        "Check what it is, and download it again."
    )


def _decoded(content: str | bytes, source: str, error: type[PPSD3Error]) -> str:
    if isinstance(content, str):
        return content
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise error(
            f"{source} is not text in UTF-8 (byte {cause.start}: {cause.reason}). "
            "Save it in UTF-8, or download it again."
        ) from cause


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Without garbage collection: a parser makes no cycles, and looking for them trebles its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether arrays and objects are nested deeper than ``levels``; it recurses nowhere."""
    level = [value]
    for _ in range(levels):
        inner = [v.values() if type(v) is dict else v for v in level if type(v) is list or type(v) is dict]
        if not inner:
            return False
        level = list(itertools.chain.from_iterable(inner))
    return any(isinstance(item, (dict, list)) for item in level)


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
