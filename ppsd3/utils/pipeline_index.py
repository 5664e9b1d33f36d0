"""Reads ``model_index.json``, the list of a pipeline's components, and the class that a configuration names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .checking import shown
from .errors import ConfigError
from .json_files import read_json
from .types import PathLike

PIPELINE_INDEX = "model_index.json"

# Entries of an index that are values, arguments of some pipeline's __init__ (its ``_settings``), and no components.
SETTINGS = ("pag_applied_layers",)


def read_pipeline_index(directory: PathLike) -> dict[str, Any]:
    """``model_index.json`` of ``directory``: ``_class_name``, values of ``SETTINGS``, other libraries' values, and for
    each component a list of two, library and class name, both None for one that is absent.

    Raises:
        CheckpointNotFoundError: there is none.
        ConfigError: it is no JSON object, or has a list that is no such pair.
    """
    path = os.path.join(os.fspath(directory), PIPELINE_INDEX)
    index = read_json(path, purpose="the list of the pipeline's components")
    for name, entry in index.items():
        if not isinstance(entry, list) or name.startswith("_") or name in SETTINGS:
            continue
        if len(entry) != 2 or not all(part is None or isinstance(part, str) for part in entry):
            raise not_a_component(path, name, entry)
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise ConfigError(f"{path} lists the component {shown(name)}, which is not a folder beside it. Remove it.")
    if not isinstance(index.get("_class_name"), (str, type(None))):
        raise ConfigError(f"{path} has the _class_name {shown(index['_class_name'])}; it has to be a str.")
    return index


def present_components(index: Mapping[str, Any]) -> dict[str, str]:
    """Name -> class name of the components of an index, without those that are absent."""
    entries = {name: e for name, e in index.items() if isinstance(e, list) and not name.startswith("_")}
    return {name: entry[1] for name, entry in entries.items() if name not in SETTINGS and entry[1] is not None}


def not_a_component(path: PathLike, name: str, entry: Any) -> ConfigError:
    """The error about an entry of the index at ``path`` that should be a pair."""
    return ConfigError(
        f"{path} has {shown(name)}: {shown(entry)}; a component is a pair of library and class name. Remove the entry, "
        "or download the file again."
    )


def named_class(config: Mapping[str, Any]) -> str | None:
    """The class that a ``config.json`` is for, as diffusers or as transformers says it; None if it names none."""
    architectures = config.get("architectures")
    listed = architectures if isinstance(architectures, list) else []
    names = [config.get(key) for key in ("_class_name", "tokenizer_class", "image_processor_type")] + listed[:1]
    return next((name for name in names if isinstance(name, str) and name), None)
