"""Pictures with captions, from where people keep them.

========================================  ===============================================================
a folder                                  pictures, each with its caption in a text file of the same name
a folder with ``metadata.jsonl`` or .csv  the layout of Hugging Face's ``imagefolder``
a directory of the ``datasets`` library   what ``save_to_disk`` wrote, or parquet files (``[train]``)
``.tar`` files                            WebDataset shards (``[train]``)
========================================  ===============================================================
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from ...utils.errors import CheckpointNotFoundError, InputError, PPSD3Error
from ...utils.images import as_rgb, load_image, open_picture
from ...utils.logging import get_logger

_logger = get_logger(__name__)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_METADATA = ("metadata.jsonl", "metadata.csv")
_CAPTION_COLUMNS = ("text", "caption", "prompt")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One picture with its caption.

    Args:
        key: names it whatever the order, e.g. its path in the folder; caches are keyed by it.
        version: changes when the picture does, e.g. its file's size and time.
        caption: what it shows.
        open: () -> the picture, upright in RGB.
        open_control: () -> the control picture, for a ControlNet; None without one.
        is_prior: whether it stands for the class, in prior preservation, not for what is learnt.
        size: width and height of the picture, where :func:`usable` has opened it.
    """

    key: str
    version: str
    caption: str
    open: Callable[[], Image.Image]
    open_control: Callable[[], Image.Image] | None = None
    is_prior: bool = False
    size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names in a table of samples.

    Args:
        caption: None for the first of "text", "caption" and "prompt" that is there.
        picture: of the picture, in data sets that hold pictures.
        control: of the control picture; in a folder's table, of its file.
    """

    caption: str | None = None
    picture: str = "image"
    control: str | None = None


def open_samples(
    source: str,
    columns: Columns = Columns(),
    instance_prompt: str | None = None,
    caption_suffix: str = ".txt",
    is_prior: bool = False,
) -> list[Sample]:
    """The samples of a folder, a data set or WebDataset shards; pictures are opened later.

    Args:
        source: a directory, a ``.tar`` file, or a pattern of them like ``shards/*.tar``.
        instance_prompt: the caption of all (DreamBooth); captions are then not looked for.
        caption_suffix: of the text files beside pictures.

    Raises:
        CheckpointNotFoundError: there is no such source.
        InputError: it has no pictures, or a picture has no caption; names it.
    """
    if source.endswith(".tar"):
        samples = _from_tars(source, columns, instance_prompt)
    elif not os.path.isdir(source):
        raise CheckpointNotFoundError(f"{source}: there is no such directory. Name one with pictures, or .tar files.")
    elif any(os.path.isfile(os.path.join(source, name)) for name in _METADATA):
        samples = _from_table(source, columns, instance_prompt)
    elif _is_data_set(source):
        samples = _from_data_set(source, columns, instance_prompt)
    else:
        samples = _from_folder(source, instance_prompt, caption_suffix)
    found = [dataclasses.replace(sample, is_prior=is_prior) for sample in samples]
    if not found:
        raise InputError(f"{source} has no pictures ({', '.join(PICTURE_SUFFIXES)}).")
    return found


def usable(samples: Sequence[Sample], least_side: int, skip_broken: bool) -> list[Sample]:
    """The samples whose pictures can be opened and have sides of at least ``least_side`` pixels.

    Args:
        skip_broken: leaves the others out and says how many, and why the first; otherwise the first is an error.

    Raises:
        InputError: a picture is broken or too small; names it.
    """
    good, reasons = [], []
    for sample in samples:
        try:
            size = sample.open().size
            if min(size) < least_side:
                raise InputError(
                    f"{sample.key} has {size[0]}x{size[1]} pixels; training at this resolution wants {least_side} at "
                    "least. Enlarge it, leave it out, or train at a lower resolution."
                )
            good.append(dataclasses.replace(sample, size=size))
        except PPSD3Error as error:
            if not skip_broken:
                raise
            reasons.append(str(error))
    if reasons:
        _logger.warning("%d of %d pictures are left out, the first because: %s", len(reasons), len(samples), reasons[0])
    if not good:
        raise InputError(f"None of {len(samples)} pictures can be used. The first: {reasons[0]}")
    return good


def _from_folder(folder, instance_prompt, caption_suffix) -> Iterator[Sample]:
    for directory, directories, names in os.walk(folder):
        directories.sort()
        for name in sorted(names):
            if name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith("."):
                path = os.path.join(directory, name)
                caption = instance_prompt
                if caption is None:
                    caption = _caption_file(os.path.splitext(path)[0] + caption_suffix, path)
                yield _of_file(folder, path, caption)


def _caption_file(path, picture):
    try:
        with open(path, encoding="utf-8-sig") as file:
            return " ".join(file.read().split())
    except FileNotFoundError:
        raise InputError(
            f"{picture} has no caption: {path} is missing. Write one, or give all the same by instance_prompt."
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, the caption of a picture, is not UTF-8 text ({error}). Save it as UTF-8.") from error


def _of_file(root, path, caption, control=None):
    stat = os.stat(path)
    return Sample(
        key=os.path.relpath(path, root),
        version=f"{stat.st_size} {stat.st_mtime_ns}",
        caption=caption,
        open=lambda: load_image(path),
        open_control=None if control is None else lambda: load_image(control),
    )


def _from_table(folder, columns, instance_prompt) -> Iterator[Sample]:
    path = next(p for p in (os.path.join(folder, name) for name in _METADATA) if os.path.isfile(p))
    for number, row in enumerate(_rows(path), 1):
        where = f"{path}, row {number}"
        if not isinstance(row.get("file_name"), str):
            raise InputError(f"{where} has no file_name. Each row needs the file of its picture.")
        control = None
        if columns.control is not None:
            control = _inside(folder, _value(row, columns.control, where), where)
        picture = _inside(folder, row["file_name"], where)
        yield _of_file(folder, picture, _caption(row, columns, instance_prompt, where), control)


def _rows(path):
    if path.endswith(".csv"):
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
        return
    from ...utils.json_files import parse_json_object

    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield parse_json_object(line, f"{path}, line {number}", error=InputError)


def _inside(folder, name, where):
    """The path of a file that a table names; only such as lie in the folder."""
    path = os.path.join(folder, name)
    if os.path.isabs(name) or not os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep):
        raise InputError(f"{where} names {name!r}, which lies outside of {folder}. Put the file into the folder.")
    if not os.path.isfile(path):
        raise InputError(f"{where} names {name!r}, which is not in {folder}.")
    return path


def _caption(row, columns, instance_prompt, where):
    if instance_prompt is not None:
        return instance_prompt
    name = columns.caption or next((name for name in _CAPTION_COLUMNS if name in row), None)
    if name is None:
        raise InputError(
            f"{where} has no caption: its columns are {', '.join(map(str, row))}. Name one by caption_column, or give "
            "all the same by instance_prompt."
        )
    return " ".join(str(_value(row, name, where)).split())


def _value(row, name, where):
    if row.get(name) is None:
        raise InputError(f"{where} has no {name!r}; its columns are {', '.join(map(str, row))}.")
    return row[name]


def _is_data_set(folder):
    names = os.listdir(folder)
    return "state.json" in names or "dataset_dict.json" in names or any(name.endswith(".parquet") for name in names)


def _version(folder):
    """Changes when a file in the folder does."""
    files = sorted(glob.glob(os.path.join(glob.escape(folder), "**"), recursive=True))
    stats = [(os.path.relpath(file, folder), os.stat(file)) for file in files if os.path.isfile(file)]
    told = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:40]


def _from_data_set(folder, columns, instance_prompt) -> Iterator[Sample]:
    datasets = _library("datasets", folder)
    if any(name.endswith(".parquet") for name in os.listdir(folder)):
        table = datasets.load_dataset("parquet", data_files=os.path.join(folder, "*.parquet"), split="train")
    else:
        table = datasets.load_from_disk(folder)
        table = table["train"] if hasattr(table, "keys") else table
    wanted = [columns.picture, *([columns.control] if columns.control else [])]
    for name in wanted:
        if name not in table.column_names:
            raise InputError(f"{folder} has no column {name!r}; it has {', '.join(table.column_names)}.")
    table = table.cast_column(columns.picture, datasets.Image(decode=False))
    if columns.control:
        table = table.cast_column(columns.control, datasets.Image(decode=False))
    texts = table.remove_columns(wanted)
    version = _version(folder)
    for index in range(len(table)):
        where = f"{folder}, row {index}"

        def read(column, index=index, where=where):
            value = table[index][column]
            source = io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"]
            return _decoded(source, f"{where}, column {column}")

        yield Sample(
            key=f"row {index}",
            version=version,
            caption=_caption(texts[index], columns, instance_prompt, where),
            open=lambda read=read: read(columns.picture),
            open_control=(lambda read=read: read(columns.control)) if columns.control else None,
        )


def _from_tars(pattern, columns, instance_prompt) -> Iterator[Sample]:
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise CheckpointNotFoundError(f"{pattern}: there is no such file.")
    webdataset = _library("webdataset", pattern)
    for path in paths:
        version = f"{os.path.getsize(path)} {os.stat(path).st_mtime_ns}"
        for record in webdataset.WebDataset(path, shardshuffle=False, empty_check=False):
            key = f"{os.path.basename(path)}/{record['__key__']}"
            suffix = next((s[1:] for s in PICTURE_SUFFIXES if s[1:] in record), None)
            if suffix is None:
                continue
            caption = instance_prompt
            if caption is None:
                if columns.caption or "txt" not in record:
                    row = _json_record(record, key)
                    caption = _caption(row, columns, None, key)
                else:
                    caption = " ".join(record["txt"].decode("utf-8").split())
            control = None if columns.control is None else record.get(columns.control)
            if columns.control is not None and control is None:
                raise InputError(f"{key} has no {columns.control!r}, its control picture.")
            yield Sample(
                key=key,
                version=version,
                caption=caption,
                open=lambda content=record[suffix], key=key: _decoded(io.BytesIO(content), key),
                open_control=None if control is None else lambda c=control, key=key: _decoded(io.BytesIO(c), key),
            )


def _json_record(record, key):
    from ...utils.json_files import parse_json_object

    if "json" not in record:
        raise InputError(
            f"{key} has no caption: neither {key}.txt nor {key}.json. Give all the same by instance_prompt."
        )
    return parse_json_object(record["json"], f"{key}.json", error=InputError)


def _decoded(source, name):
    return as_rgb(open_picture(source, name), name)


def _library(name: str, source: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{source} is read by the library {name}: pip install 'ppsd3[train]'.") from error
