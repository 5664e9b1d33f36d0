"""Text encoders and tokenizers of PaddleNLP, and of ppdiffusers, which has its own versions of them, as ppsd3's own.

Neither library is imported: what an object is, the names and modules of its classes tell.
"""

from __future__ import annotations

import tempfile
from typing import Any

from ..modeling_utils import ModelMixin
from ..serialization.tensor_dict import TensorDict
from ..utils.errors import InputError
from .clip import CLIPTextModelWithProjection, CLIPTokenizer
from .t5 import T5EncoderModel, T5Tokenizer

_LIBRARIES = ("paddlenlp", "ppdiffusers")
_CLASSES = {kind.__name__: kind for kind in (CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer)}


def from_paddlenlp(part: Any) -> Any:
    """Makes ppsd3's own text encoder or tokenizer of one of PaddleNLP or ppdiffusers.

    ::

        pipe.text_encoder_3 = ppsd3.from_paddlenlp(pipe.text_encoder_3)

    Those of PaddleNLP can be components of a pipeline as they are. What changes a text encoder needs ppsd3's own: int8,
    LoRA, textual inversion; and prompts with weights need its tokenizers.

    Args:
        part: a ``CLIPTextModelWithProjection``, ``T5EncoderModel``, ``CLIPTokenizer`` or ``T5Tokenizer``, or of a class
            that extends one. It stays as it is. One of ppsd3 is given back.

    Returns:
        The class of the same name, in ``ppsd3``. A text encoder has copies of the weights, in their dtype and on their
        device, and is in evaluation mode.

    Raises:
        InputError: another class.
        WeightMismatchError: the weights are not those of the class, e.g. with adapters among them.
    """
    if isinstance(part, tuple(_CLASSES.values())):
        return part
    kind = counterpart(part)
    if kind is None:
        raise InputError(
            f"from_paddlenlp takes a {', '.join(_CLASSES)} of PaddleNLP or ppdiffusers, not {described(part)}. Load "
            "other parts with ppsd3's classes."
        )
    if not issubclass(kind, ModelMixin):
        with tempfile.TemporaryDirectory() as directory:
            part.save_pretrained(directory)
            return kind.from_pretrained(directory)
    config = {name: getattr(part.config, name) for name in kind._known_keys() if hasattr(part.config, name)}
    return kind.from_source(TensorDict(part.state_dict(), described(part), {"format": "np"}), config)


def counterpart(part: Any) -> Any:
    """The class that :func:`from_paddlenlp` makes of ``part``; None for what it does not take."""
    names = [kind.__name__ for kind in type(part).__mro__ if _library(kind)]
    return next((_CLASSES[name] for name in names if name in _CLASSES), None)


def is_foreign(part: Any) -> bool:
    """Whether ``part`` is an object of PaddleNLP or ppdiffusers, or of a class that extends one of theirs."""
    return any(_library(kind) for kind in type(part).__mro__)


def require_own(what: str, part: Any, name: str | None = None) -> None:
    """Raises InputError, with the remedy, if ``part`` is an object of PaddleNLP or ppdiffusers.

    Args:
        what: needs ppsd3's own, for the message.
        name: of the component, if ``part`` is one.
    """
    if is_foreign(part):
        remedy = "Load ppsd3's class of that name."
        if counterpart(part):
            remedy = f"Convert it: pipe.{name} = ppsd3.from_paddlenlp(pipe.{name})."
            remedy = remedy if name else "Convert it with ppsd3.from_paddlenlp."
        raise InputError(f"{what} needs ppsd3's own {name or 'network'}, and this is {described(part)}. {remedy}")


def described(part: Any) -> str:
    """What messages call ``part``: "a ppdiffusers T5EncoderModel"."""
    library = next((name for name in map(_library, type(part).__mro__) if name), None)
    return f"a {library} {type(part).__name__}" if library else f"a {type(part).__name__}"


def _library(kind: type) -> str | None:
    root = kind.__module__.partition(".")[0]
    return root if root in _LIBRARIES else None
