"""Objects of PaddleNLP and ppdiffusers among a pipeline's components: told by the names and modules of their classes,
so that neither library is imported."""

from __future__ import annotations

from typing import Any

from .errors import InputError

_LIBRARIES = ("paddlenlp", "ppdiffusers")
# What `ppsd3.from_paddlenlp` makes ppsd3's own of.
CONVERTIBLE = ("CLIPTextModelWithProjection", "T5EncoderModel", "CLIPTokenizer", "T5Tokenizer")


def is_foreign(part: Any) -> bool:
    """Whether ``part`` is an object of one of the two libraries, or of a class that extends one of theirs."""
    return any(_library(kind) for kind in type(part).__mro__)


def convertible_name(part: Any) -> str | None:
    """The class of ppsd3 that ``part`` can be converted to, by name; None for anything else."""
    names = [kind.__name__ for kind in type(part).__mro__ if _library(kind)]
    return next((name for name in names if name in CONVERTIBLE), None)


def require_own(what: str, part: Any, name: str | None = None) -> None:
    """Raises InputError, with the remedy, if ``part`` is an object of one of the two libraries.

    Args:
        what: needs ppsd3's own, for the message.
        name: of the component, if ``part`` is one.
    """
    if not is_foreign(part):
        return
    if convertible_name(part) is None:
        remedy = "Load ppsd3's class of that name."
    elif name is None:
        remedy = "Convert it with ppsd3.from_paddlenlp."
    else:
        remedy = f"Convert it: pipe.{name} = ppsd3.from_paddlenlp(pipe.{name})."
    raise InputError(f"{what} needs ppsd3's own {name or 'network'}, and this is {described(part)}. {remedy}")


def described(part: Any) -> str:
    """What messages call ``part``: "a ppdiffusers T5EncoderModel"."""
    library = next((name for name in map(_library, type(part).__mro__) if name), None)
    return f"a {library} {type(part).__name__}" if library else f"a {type(part).__name__}"


def _library(kind: type) -> str | None:
    root = kind.__module__.partition(".")[0]
    return root if root in _LIBRARIES else None
