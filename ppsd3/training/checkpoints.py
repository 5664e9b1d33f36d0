"""States of a training run: a directory each, whole or not there at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import paddle

from ..serialization.readers import SafetensorsFile
from ..serialization.writers import byte_size, write_tensors
from ..utils.errors import CheckpointFormatError, CheckpointNotFoundError, ConfigError
from ..utils.files import atomic_write, replacing
from ..utils.json_files import read_json
from ..utils.temporary import discard, remove_leftovers
from ..utils.types import Tensors

_NAME = re.compile(r"step-(\d{8})")
_STATE = "state.json"


class Checkpoints:
    """The states in ``directory``, one ``step-00000500`` each: ``state.json``, and safetensors files of tensors.

    Args:
        directory: made when the first state is saved.
        total_limit: of states to keep; the oldest go. None keeps all.
    """

    def __init__(self, directory: str, total_limit: int | None = None) -> None:
        self.directory: str = directory
        self.total_limit: int | None = total_limit
        remove_leftovers(directory)  # of a run that was killed

    def paths(self) -> list[str]:
        """Of the states, from the oldest to the latest."""
        if not os.path.isdir(self.directory):
            return []
        names = sorted(name for name in os.listdir(self.directory) if _NAME.fullmatch(name))
        return [os.path.join(self.directory, name) for name in names]

    def save(self, step: int, state: Mapping[str, Any], groups: Mapping[str, Tensors]) -> str:
        """Writes a state, then removes what is too old; returns its path.

        Args:
            state: JSON values.
            groups: tensors by name, by the name of their file.
        """
        os.makedirs(self.directory, exist_ok=True)
        path = os.path.join(self.directory, f"step-{step:08}")
        needed = sum(byte_size(tensor) for tensors in groups.values() for tensor in tensors.values())
        with replacing(path, needed=needed) as new:
            for group, tensors in groups.items():
                with atomic_write(os.path.join(new, f"{group}.safetensors")) as file:
                    write_tensors(file, tensors)
            with atomic_write(os.path.join(new, _STATE)) as file:
                file.write((json.dumps(dict(state), indent=2) + "\n").encode())
        if self.total_limit is not None:
            for old in self.paths()[: -self.total_limit]:
                discard(old)
        return path

    def discard_after(self, step: int) -> None:
        """Removes states of later steps: another run from here on would mix with them."""
        for path in self.paths():
            if int(os.path.basename(path)[len("step-") :]) > step:
                discard(path)

    def find(self, which: str) -> str | None:
        """The path of a state: the latest for "latest" (None if there is none), or the directory ``which`` itself.

        Raises:
            CheckpointNotFoundError: ``which`` is neither in the run nor a state elsewhere.
        """
        if which == "latest":
            return next(reversed(self.paths()), None)
        for path in (os.path.join(self.directory, which), which):
            if os.path.isfile(os.path.join(path, _STATE)):
                return path
        known = ", ".join(map(os.path.basename, self.paths())) or "none"
        raise CheckpointNotFoundError(f"resume from {which}: there is no such state. Those of this run: {known}.")


def read_state(path: str) -> dict[str, Any]:
    """The JSON values of a state.

    Raises:
        CheckpointFormatError: the file is damaged.
    """
    file = os.path.join(path, _STATE)
    return read_json(file, "the state of a training run", error=CheckpointFormatError)


def read_group(path: str, group: str) -> Tensors:
    """The tensors of one file of a state.

    Raises:
        CheckpointNotFoundError, CheckpointFormatError: the file is missing or damaged.
    """
    file = SafetensorsFile(os.path.join(path, f"{group}.safetensors"))
    return {name: file.read(name) for name in file.keys()}


def load_into(path: str, group: str, tensors: Mapping[str, paddle.Tensor]) -> None:
    """Sets ``tensors`` to those of one file of a state.

    Raises:
        ConfigError: names or shapes differ; nothing is set.
    """
    found = read_group(path, group)
    for name in sorted({*found, *tensors}):
        mine = list(tensors[name].shape) if name in tensors else None
        stored = list(found[name].shape) if name in found else None
        if mine != stored:
            raise ConfigError(
                f"{os.path.join(path, group)}.safetensors has {_shape(stored)} for {name}, where the run has "
                f"{_shape(mine)}: it is of another model or of other layers. Use another output directory, or the "
                "settings of that run."
            )
    for name, tensor in tensors.items():
        tensor.set_value(found[name])


def _shape(shape):
    return "nothing" if shape is None else f"shape {shape}"
