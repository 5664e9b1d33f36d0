"""The report itself: sections, each caught and written at once."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...utils.files import atomic_write
from ...utils.types import PathLike

FORMAT = 1  # of the file; another number where keys change their meaning
_PACKAGE = Path(__file__).parents[2]
_DIRECTORIES = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][^\s\\/:'\",]+)+[\\/](?=[^\s\\/])")
_FRAMES = 4


class Report:
    """Results by section, in a file that is whole at every moment.

    Args:
        path: of the JSON file.
        seconds: after so many, sections are left out, so that a report ends.
        say: is given a line for each section.
    """

    def __init__(self, path: PathLike, seconds: float, say: Callable[[str], None] = print) -> None:
        self.path: str = os.fspath(path)
        self.content: dict[str, Any] = {"format": FORMAT, "complete": False, "machine": {}, "sections": {}}
        self._end, self._seconds, self._say = time.monotonic() + seconds, seconds, say

    def describe(self, machine: dict[str, Any]) -> None:
        """Notes what was measured on."""
        self.content["date"] = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        self.content["machine"] = machine
        self._write()

    def section(self, name: str, measure: Callable[[], Any]) -> Any:
        """Runs ``measure`` and keeps what it returns, or why it failed; returns that, None for a failure."""
        start, result, entry = time.monotonic(), None, {}
        if start > self._end:
            entry["left_out"] = f"{self._seconds:.0f} s were over"
        else:
            try:
                result = measure()
                entry["result"] = _plain(result)
            except Exception as error:  # noqa: BLE001, whatever fails is the result
                entry["error"] = f"{type(error).__name__}: {without_directories(str(error))[-600:]}"
                entry["where"] = _where(error)
            entry["seconds"] = round(time.monotonic() - start, 2)
        self.content["sections"][name] = entry
        self._write()
        self._say(f"{name}: {entry.get('result', entry.get('error', entry.get('left_out')))}")
        return result

    def finish(self) -> None:
        """Says that nothing is missing."""
        self.content["complete"] = True
        self._write()

    @property
    def failed(self) -> list[str]:
        """The sections that raised an error."""
        return [name for name, entry in self.content["sections"].items() if "error" in entry]

    def _write(self):
        with atomic_write(self.path) as file:
            file.write(json.dumps(self.content, indent=1, allow_nan=False).encode())


def without_directories(text: str) -> str:
    """``text`` on one line, with the last part alone of each path in it: directories name their users."""
    return _DIRECTORIES.sub("", " ".join(text.split()))


def _where(error):
    """The lines of this package that an error came through, the last first."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(frame.filename).parents]
    ours = [f"{Path(frame.filename).relative_to(_PACKAGE).as_posix()}:{frame.lineno}" for frame in reversed(frames)]
    return ours[:_FRAMES]


def _plain(value):
    """As JSON has it: numbers short, and as words where they are not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int)) else str(value)
