"""Which tensors of a checkpoint do not fit a model, and the error that lists them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

from ..utils.errors import WeightMismatchError
from ..utils.types import Shape

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """How the tensors of a checkpoint fit those of a model.

    Attributes:
        missing: names in the model that the checkpoint lacks.
        unexpected: names in the checkpoint that the model lacks.
        mismatched: (name, shape in the checkpoint, shape in the model).
        dropped: unexpected names that may be left unused.
        stranger: what the checkpoint is, where it is of another model.
    """

    model: str
    source: str
    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    mismatched: Sequence[tuple[str, Shape, Shape]] = ()
    dropped: Sequence[str] = ()
    stranger: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every tensor fits."""
        return not (self.missing or self.unexpected or self.mismatched)

    def raise_if_bad(self) -> None:
        """Raises WeightMismatchError, with the whole report as its message, unless :attr:`ok`."""
        if not self.ok:
            raise WeightMismatchError(str(self))

    def as_loading_info(self) -> dict[str, list[str]]:
        """The report under diffusers' names."""
        return {
            "missing_keys": list(self.missing),
            "unexpected_keys": [*self.unexpected, *self.dropped],
            "mismatched_keys": [name for name, _, _ in self.mismatched],
            "error_msgs": [],
        }

    def __str__(self) -> str:
        if self.ok:
            return f"{self.source} fits {self.model}."
        if self.stranger:
            return self.stranger
        lines = [f"{self.source} does not fit {self.model}:"]
        lines += _section("missing from the checkpoint", self.missing, self.unexpected)
        lines += _section("in the checkpoint but not in the model", self.unexpected, self.missing)
        shapes = [f"{name}: checkpoint {list(have)}, model {list(want)}" for name, have, want in self.mismatched]
        lines += _section("of another shape", shapes)
        return "\n".join(lines + [self._remedy()])

    def _remedy(self):
        if self.mismatched and not (self.missing or self.unexpected):
            return "The config.json beside the weights describes another model size: use the one that belongs to them."
        if not self.mismatched and not self.unexpected:
            return "The file is incomplete: download it again, or check that config.json belongs to it."
        return (
            "Check that the weights and config.json are of the same model, that `subfolder` names the right component, "
            "and that the checkpoint is in diffusers format, not a single file."
        )


def _section(title, names, others=()):
    """Header with the count, then the first names, each with the nearest spelling among ``others``."""
    if not names:
        return []
    lines = [f"  {len(names)} {title}:"]
    for name in names[:_SHOWN]:
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
        lines.append(f"    {name}" + (f" (nearest on the other side: {near[0]})" if near else ""))
    if len(names) > _SHOWN:
        lines.append(f"    and {len(names) - _SHOWN} more")
    return lines
