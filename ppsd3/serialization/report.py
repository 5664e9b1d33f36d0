"""What did not fit when a checkpoint met a model, and the error that says so."""

import difflib

from ..utils.errors import WeightMismatchError

_SHOWN = 5


class LoadReport:
    """Names that a model and a checkpoint don't share.

    Attributes:
        missing (list of str): the model's, absent from the checkpoint.
        unexpected (list of str): the checkpoint's, unknown to the model and on no allow-list.
        mismatched (list of (name, checkpoint shape, model shape)).
        dropped (list of str): unexpected, but allowed to be.
    """

    def __init__(self, model, source, missing=(), unexpected=(), mismatched=(), dropped=()):
        self.model, self.source = model, source
        self.missing, self.unexpected = list(missing), list(unexpected)
        self.mismatched, self.dropped = list(mismatched), list(dropped)

    @property
    def ok(self):
        """Whether every tensor found its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    def raise_if_bad(self):
        """Raises WeightMismatchError, with the whole report as its message, unless :attr:`ok`."""
        if not self.ok:
            raise WeightMismatchError(str(self))

    def __str__(self):
        if self.ok:
            return f"{self.source} fits {self.model}."
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
