"""What ``ppsd3 doctor`` finds, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ... import __version__
from ...utils.printable import printable


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was looked at, and how it is.

    Attributes:
        key: its name for programs, which stays from one version to the next.
        what, state: for people.
        verdict: "ok"; "note", which may be meant so; "wrong".
        remedy: what to do about it.
        value: the state for programs: a number, a string, a list.
    """

    key: str
    what: str
    state: str
    verdict: str = "ok"
    remedy: str = ""
    value: Any = None

    def __str__(self) -> str:
        remedy = f". {self.remedy}" if self.remedy else ""
        return printable(f"{self.verdict:5} {self.what}: {self.state.rstrip('.') if remedy else self.state}{remedy}")


class Findings:
    """All findings of a run; ``show`` prints each when it is added."""

    def __init__(self, show: bool) -> None:
        self.found: list[Finding] = []
        self._show = show

    def add(self, finding: Finding) -> None:
        """Keeps a finding."""
        self.found.append(finding)
        if self._show:
            print(finding, flush=True)

    @property
    def are_wrong(self) -> bool:
        """Whether something is wrong."""
        return any(finding.verdict == "wrong" for finding in self.found)

    def as_json(self) -> str:
        """``{"ppsd3": version, "wrong": whether something is, "findings": [the fields of each]}``."""
        everything = [dataclasses.asdict(finding) for finding in self.found]
        return json.dumps({"ppsd3": __version__, "wrong": self.are_wrong, "findings": everything}, indent=1)
