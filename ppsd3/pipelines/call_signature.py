"""The signature of a pipeline's call, made from a dataclass.

A field of the dataclass is annotated ``Annotated[type, Range(...), Doc(meaning)]``, the range being optional; a value
that is not of the type, or out of the range, is refused. :func:`takes` gives a method the signature of
the fields, for ``inspect``, ``help()`` and static checkers alike; :func:`describe` lists them for whatever else is made
from them: options of a command, a form, a schema, a table. The arguments themselves are declared in
``stable_diffusion_3/arguments.py``.
"""

import dataclasses
import functools
import inspect
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar, Union

import numpy as np
import paddle
from PIL import Image

from ..utils.checking import Range, fit
from ..utils.elsewhere import CALL_ARGUMENTS, check_argument_names
from ..utils.errors import UnknownArgumentError

if TYPE_CHECKING:
    from typing_extensions import Concatenate, ParamSpec

    P = ParamSpec("P")
S = TypeVar("S")
A = TypeVar("A")
R = TypeVar("R")

Texts = Union[str, list[str], None]
Pictures = Union[Image.Image, np.ndarray, paddle.Tensor, list[Image.Image], list[np.ndarray], list[paddle.Tensor], None]
Numbers = Union[float, list[float]]  # one for all ControlNets, or one for each
PicturesOfEach = Union[Pictures, list[Pictures]]  # likewise


@dataclass(frozen=True)
class Doc:
    """The meaning of an argument.

    Args:
        text: one sentence or two; shapes and units are said here, the type and the default are not.
        option: its name on the command line; "" for the argument's own name, None for no option.
        forms: which Python objects a picture may be, where there are several.
        of_checkpoint: whether a checkpoint may have its own default, see :mod:`ppsd3.pipelines.call_defaults`.
    """

    text: str
    option: Optional[str] = ""
    forms: str = ""
    of_checkpoint: bool = False


# Kind of value by type, for options, forms and schemas; what is in no line is for Python alone.
KINDS = {
    str: "text",
    Texts: "text",
    bool: "flag",
    int: "whole",
    Optional[int]: "whole",
    float: "number",
    Optional[float]: "number",
    Optional[list[int]]: "wholes",
    Optional[list[float]]: "numbers",
    Numbers: "number or numbers",
    Pictures: "picture",
    PicturesOfEach: "picture or pictures",
}


@dataclass(frozen=True)
class Argument:
    """One argument of a call, as data.

    Args:
        name: as the call knows it.
        type: the annotation, without its :class:`Doc`.
        default: what it is if it is left out.
        text: what it means.
        forms: which Python objects it may be, "" where the type says it.
        option: its name on the command line, e.g. ``"--steps"``; None where it has none.
        kind: one of the values of ``KINDS``; "python" for what no form can ask for.
        limits: of its numbers; None where any are.
        of_checkpoint: whether a checkpoint may have its own default.
    """

    name: str
    type: Any
    default: Any
    text: str
    forms: str
    option: Optional[str]
    kind: str
    limits: Optional[Range] = None
    of_checkpoint: bool = False

    def fit(self, value: Any) -> Any:
        """``value`` as the argument's type. Raises an InputError that says what it should be, and what it means."""
        meaning = f"{self.text} {self.forms}".strip()
        return fit(self.name, value, self.type, limits=self.limits, remedy=f" (`{self.name}`: {meaning})")


def describe(arguments: type) -> list[Argument]:
    """The arguments of a task, in the order of the call's signature."""
    return list(_described(arguments))


@functools.cache
def _described(arguments):
    return tuple(_argument(arguments, field) for field in dataclasses.fields(arguments))


def _argument(arguments: type, field: "dataclasses.Field[Any]") -> Argument:
    declared = next(
        annotation
        for annotation in (vars(c).get("__annotations__", {}).get(field.name) for c in arguments.__mro__)
        if hasattr(annotation, "__metadata__")
    )
    doc = next(item for item in declared.__metadata__ if isinstance(item, Doc))
    limits = next((item for item in declared.__metadata__ if isinstance(item, Range)), None)
    plain = declared.__origin__
    kind = KINDS.get(plain, "python")
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    option = doc.option if doc.option != "" else "--" + field.name.replace("_", "-")
    option = None if kind == "python" else option
    return Argument(field.name, plain, default, doc.text, doc.forms, option, kind, limits, doc.of_checkpoint)


def takes(
    arguments: "Callable[P, A]",
) -> "Callable[[Callable[[S, A], R]], Callable[Concatenate[S, P], R]]":
    """Decorator of a method that reads one object: the method then takes the object's fields, by position or by name.

    Args:
        arguments: a dataclass of annotated fields.

    Where ``self`` has ``call_defaults`` with an argument that is left out, its value is the default. The method's
    signature is theirs, its docstring goes on with a list of them, and ``method.arguments`` is the class. An argument
    that is not among them raises an :class:`UnknownArgumentError`.
    """
    kind: Any = arguments

    def decorate(method: Any) -> Any:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return method(self, _bind(kind, args, kwargs, getattr(self, "call_defaults", {})))

        positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
        described = describe(kind)
        parameters = [inspect.Parameter(a.name, positional, default=a.default, annotation=a.type) for a in described]
        signature = inspect.signature(method)
        own = inspect.Parameter("self", positional)
        call.__doc__ = _with_arguments(method.__doc__ or "", described)
        vars(call).update(arguments=kind, __signature__=signature.replace(parameters=[own, *parameters]))
        return call

    return decorate


def _with_arguments(doc: str, arguments: list[Argument]) -> str:
    first, _, rest = doc.partition("\n")
    rows = [textwrap.fill(f"{a.name}: {a.text} {a.forms}".rstrip(), 112, subsequent_indent=" " * 4) for a in arguments]
    body = textwrap.dedent(rest).strip("\n")
    return "\n\n".join([first, "Args:\n" + textwrap.indent("\n".join(rows), " " * 4), body]).rstrip() + "\n"


def _bind(kind: type[A], args: Any, kwargs: dict[str, Any], own: dict[str, Any]) -> A:
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    check_argument_names("The call", kwargs, names, CALL_ARGUMENTS)
    if len(args) > len(names) or not kwargs.keys().isdisjoint(names[: len(args)]):
        raise _misplaced(names, args, kwargs)
    arguments = kind(*args, **{**{name: own[name] for name in names[len(args) :] if name in own}, **kwargs})
    for argument in _described(kind):
        value = getattr(arguments, argument.name)
        if value is not argument.default:
            setattr(arguments, argument.name, argument.fit(value))
    return arguments


def _misplaced(names: list[str], args: Any, kwargs: dict[str, Any]) -> UnknownArgumentError:
    if len(args) > len(names):
        return UnknownArgumentError(f"The call takes {len(names)} arguments, but {len(args)} were given by position.")
    twice = next(name for name in names if name in kwargs)
    return UnknownArgumentError(f"{twice!r} is given twice: by position and by name.")
