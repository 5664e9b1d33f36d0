"""Values against the types that are declared for them: of a call's arguments, a constructor's, a configuration file's.

An annotation is the check: :func:`fit` gives a value as the declared type, or refuses it by name. A numpy integer is an
int, a torch tensor or an array is a ``paddle.Tensor``, a 0-d array is a number. ``Annotated[int, Range(1)]`` declares
limits too. :func:`checks_arguments` does it for a function, :func:`declared_types` gives its annotations.
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import functools
import inspect
import math
import numbers
import reprlib
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Callable, Literal, TypeVar, Union, cast

import numpy as np
import paddle
from PIL import Image

from .elsewhere import nearest
from .errors import InputError, UnknownArgumentError

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Range:
    """Limits of a number, or of all numbers in a list; ``Range()`` asks of a tensor or an array that all are finite.

    Args:
        least, most: inclusive. Default: any finite number; ``-math.inf`` and ``math.inf`` allow infinity.
        above, below: exclusive.
        axes: numbers of axes that an array or a tensor may have; then it is not empty either.
    """

    least: float = -sys.float_info.max
    most: float = sys.float_info.max
    above: float | None = None
    below: float | None = None
    axes: tuple[int, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether ``value``, a number, is within the limits; NaN never is."""
        above, below = self.above is None or value > self.above, self.below is None or value < self.below
        return self.least <= value <= self.most and above and below

    def __str__(self) -> str:
        """What follows "a number" in a message: " from 0 to 1"; nothing where any number is within."""
        has_least, has_most = self.least > FINITE.least, self.most < FINITE.most
        if has_least and has_most:
            return f" from {self.least} to {self.most}"
        words = {"above": self.above, "of at least": self.least if has_least else None, "below": self.below}
        words["of at most"] = self.most if has_most else None
        limits = [f"{word} {limit}" for word, limit in words.items() if limit is not None]
        return " " + " and ".join(limits) if limits else ""

    def fits(self, array: Any) -> bool:
        """Whether ``array``, or a tensor, has the right number of axes."""
        return not self.axes or (len(array.shape) in self.axes and 0 not in array.shape)


FINITE = Range()
_UNIONS = (Union, getattr(types, "UnionType", Union))


def fit(
    name: str,
    value: Any,
    kind: Any,
    error: type[Exception] = InputError,
    limits: Range | None = None,
    remedy: str = "",
) -> Any:
    """``value`` as the type ``kind``.

    Args:
        name: of the argument or key, for the message; it may say where that is: "config.json's num_layers".
        value: what was given.
        kind: an annotation: a class, ``Optional``, ``Union``, ``Literal``, ``Annotated[..., Range(...)]``, ``list``,
            ``tuple``, ``Sequence``, ``dict`` or ``Callable`` of such. What cannot be checked (``Any``, a name that is
            only known to type checkers) fits everything.
        error: type of the error.
        limits: of the numbers in it, where the annotation has none.
        remedy: more for the message.

    Returns:
        ``value`` itself if it is of the type; else what it was converted to without a loss.

    Raises:
        error: it does not fit. The message names the argument (and the element in it), the value and what fits.
    """
    known, numbers_, range_, items = _usual(kind, limits)
    of_kind = type(value) in known or (type(value) in numbers_ and range_.holds(value))
    if kind is Any or of_kind or (type(value) is list and items and items.issuperset(map(type, value))):
        return value
    return _converted(name, value, kind, error, limits, remedy)


def _converted(name, value, kind, error, limits, remedy):
    try:
        return _fit(name, value, kind, limits)
    except _Misfit as misfit:
        raise error(f"{misfit}{remedy}") from None


@functools.cache
def _usual(kind, limits):
    """What most values are, told at a glance: types that fit as they are, types of numbers that fit within a range,
    that range, and types of a list's items that fit."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _usual(inner[0], next((item for item in kind.__metadata__ if isinstance(item, Range)), limits))
    nothing: frozenset[type] = frozenset()
    if origin in _UNIONS:
        parts: list[Any] = [_usual(part, limits) for part in inner]
        known, numbers_, items = (nothing.union(*(part[i] for part in parts)) for i in (0, 1, 3))
        ranges = {part[2] for part in parts if part[1]} or {FINITE}
        return known, numbers_ if len(ranges) == 1 else nothing, ranges.pop(), items
    known, items = nothing, nothing
    if origin in (list, collections.abc.Sequence) and limits is None:
        items = _usual(inner[0], None)[0]
    elif kind in (str, bool, type(None)) or (kind is paddle.Tensor and limits is None):
        known = frozenset([kind])
    return known, frozenset({int: [int], float: [int, float]}.get(kind, [])), limits or FINITE, items


def checks_arguments(function: Function) -> Function:
    """Decorator of a function, a method or a class: its arguments are of the types that they are annotated with.

    A default fits by itself. Inside of a graph that is being traced nothing is checked.

    Raises:
        InputError: (by the function) an argument does not fit, see :func:`fit`; an unknown or a missing one.
    """
    if isinstance(function, type):
        setattr(function, "__init__", checks_arguments(function.__init__))  # noqa: B010 (of any class)
        return cast(Function, function)
    signature = inspect.signature(function)
    parameters = signature.parameters

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not paddle.in_dynamic_mode():
            return function(*args, **kwargs)
        bound, kinds = bind(signature, args, kwargs, function.__qualname__), declared_types(function)
        for name, value in bound.arguments.items():
            if name in kinds and value is not parameters[name].default:
                bound.arguments[name] = fit(name, value, kinds[name])
        return function(*bound.args, **bound.kwargs)

    return cast(Function, call)


def bind(signature: inspect.Signature, args: Any, kwargs: Mapping[str, Any], name: str) -> inspect.BoundArguments:
    """What a call of a function called ``name`` gives for each parameter.

    Raises:
        UnknownArgumentError: an unknown argument, a missing one, one that is given twice, or too many.
    """
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise _unbound(signature, kwargs, f"{name}: {error}") from None


def _unbound(signature, kwargs, fault):
    known = [own for own in signature.parameters if own != "self"]
    unknown = [given for given in kwargs if given not in known]
    hint = nearest(unknown[0], known) if unknown else ""
    return UnknownArgumentError(f"{fault}. {hint or 'It takes ' + ', '.join(known) + '.'}")


@functools.cache
def declared_types(owner: Any) -> dict[str, Any]:
    """Annotations by name: of a function's arguments (without ``*args`` and ``**kwargs``), or of a class's attributes,
    which in a dataclass are its fields.

    Names that exist for type checkers alone are ``Any``, and ``int | None`` may stand in a source that Python 3.9
    runs.
    """
    if not isinstance(owner, type):
        function = inspect.unwrap(owner)
        names = {**vars(typing), **getattr(function, "__globals__", {})}
        declared = getattr(function, "__annotations__", {})
        several = [p.name for p in _parameters(function) if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return {name: _evaluated(kind, names) for name, kind in declared.items() if name not in ("return", *several)}
    found: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        names = {**vars(typing), **vars(sys.modules[base.__module__])}
        for name, kind in vars(base).get("__annotations__", {}).items():
            kind = _evaluated(kind, names)
            if hasattr(kind, "__metadata__") or not hasattr(found.get(name), "__metadata__"):
                found[name] = kind  # a subclass that changes a default alone keeps the limits
    return found


def _parameters(function):
    return inspect.signature(function).parameters.values() if callable(function) else ()


class _Unions(ast.NodeTransformer):
    """``a | b`` as ``Union[a, b]``."""

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if not isinstance(node.op, ast.BitOr):
            return node
        sides = ast.Tuple([node.left, node.right], ast.Load())
        return ast.Subscript(ast.Name("Union", ast.Load()), sides, ast.Load())


def _evaluated(annotation, names):
    if not isinstance(annotation, str):
        return Any if typing.get_origin(annotation) in _UNIONS and Any in typing.get_args(annotation) else annotation
    tree = ast.fix_missing_locations(_Unions().visit(ast.parse(annotation, mode="eval")))
    try:
        return _evaluated(eval(compile(tree, "<annotation>", "eval"), {**names, "Union": Union}), names)
    except (NameError, AttributeError):  # imported under TYPE_CHECKING
        return Any


class _Misfit(Exception):
    """(name, value, kind, range, whether only NaN or infinity is wrong): the message is made when it is read."""

    def __str__(self) -> str:
        name, value, kind, limits, only_not_finite = self.args
        fault = "holds NaN or infinity" if only_not_finite else f"is {shown(value)}"
        return f"`{name}` {fault}; it has to be {describe_type(kind, limits=limits)}.{_hint(value, kind)}"


_NO: Any = object()
_NOT_FINITE: Any = object()


def _fit(name, value, kind, limits):
    origin = typing.get_origin(kind)
    if origin is Annotated:
        limits = next((item for item in kind.__metadata__ if isinstance(item, Range)), limits)
        return _fit(name, value, kind.__origin__, limits)
    fitting = _FITTING.get(origin or kind)
    if kind is Any:
        return value
    if fitting is not None:
        found = fitting(name, value, typing.get_args(kind), limits)
    elif isinstance(origin or kind, type) and not getattr(origin or kind, "_is_protocol", False):
        found = value if isinstance(value, origin or kind) else _NO
    else:
        return value
    if found is _NO or found is _NOT_FINITE:
        raise _Misfit(name, value, kind, limits, found is _NOT_FINITE)
    return found


def _fit_union(name, value, kinds, limits):
    misfits = []
    for kind in (type(value),) if type(value) in kinds else kinds:
        try:
            return _fit(name, value, kind, limits)
        except _Misfit as misfit:
            misfits.append(misfit.args)
    # that one element of a list does not fit says more than that the list does not
    place = max((at for at, *_ in misfits), key=lambda at: (len(at), at))
    _, part, _, limits, only_not_finite = next(
        (args for args in misfits if args[0] == place and args[4]), next(args for args in misfits if args[0] == place)
    )
    if place == name and not only_not_finite:
        return _NO
    raise _Misfit(place, part, Union[tuple(args[2] for args in misfits if args[0] == place)], limits, only_not_finite)


def _fit_none(name, value, kinds, limits):
    return None if value is None else _NO


def _fit_bool(name, value, kinds, limits):
    return bool(value) if isinstance(value, (bool, np.bool_)) else _NO


def _fit_str(name, value, kinds, limits):
    return value if isinstance(value, str) else _NO


def _fit_literal(name, value, kinds, limits):
    return next((known for known in kinds if type(known) is type(value) and known == value), _NO)


def _number(value):
    """The Python number that ``value`` is, or None."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # numpy's, and tensors of any library
        value = value.item()
    if type(value) is int or type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _fit_int(name, value, kinds, limits):
    number = _number(value)
    return number if isinstance(number, int) and (limits or FINITE).holds(number) else _NO


def _fit_float(name, value, kinds, limits):
    number = _number(value)
    return number if number is not None and (limits or FINITE).holds(number) else _NO


def _fit_sequence(name, value, kinds, limits):
    """list, tuple or Sequence of one kind; arrays and tensors of one axis are lists of numbers."""
    items: Any = value
    if isinstance(value, (np.ndarray, paddle.Tensor)) or _is_torch(value):
        items = value.tolist() if value.ndim == 1 else None
    elif isinstance(value, (str, bytes)) or not isinstance(value, collections.abc.Sequence):
        items = None
    if items is None:
        return _NO
    kind = kinds[0] if kinds else Any
    found = [_fit(f"{name}[{i}]", item, kind, limits) for i, item in enumerate(items)]
    if items is value and all(one is other for one, other in zip(found, items)):
        return value
    return tuple(found) if isinstance(value, tuple) else found


def _fit_list(name, value, kinds, limits):
    found = _fit_sequence(name, value, kinds, limits)
    return found if found is _NO or isinstance(found, list) else list(found)


def _fit_tuple(name, value, kinds, limits):
    if (len(kinds) == 2 and kinds[1] is Ellipsis) or not kinds:
        found = _fit_sequence(name, value, kinds[:1], limits)
        return found if found is _NO else tuple(found)
    if not isinstance(value, (list, tuple)) or len(value) != len(kinds):
        return _NO
    return tuple(_fit(f"{name}[{i}]", *pair, limits) for i, pair in enumerate(zip(value, kinds)))


def _fit_dict(name, value, kinds, limits):
    if not isinstance(value, Mapping):
        return _NO
    of_key, of_value = kinds or (Any, Any)
    for key, item in value.items():
        _fit(f"a key of {name}", key, of_key, None)
        _fit(f"{name}[{key!r}]", item, of_value, limits)
    return value


def _fit_callable(name, value, kinds, limits):
    if not callable(value):
        return _NO
    if kinds and isinstance(kinds[0], list):
        try:
            inspect.signature(value).bind(*kinds[0])
        except TypeError:
            return _NO
        except ValueError:  # a builtin without a signature
            return _NO if isinstance(value, type) else value
    return value


def _fit_tensor(name, value, kinds, limits):
    tensor = value
    if _is_torch(value):
        tensor = _from_torch(value)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.ndim < 10:
        tensor = paddle.to_tensor(value)
    if not isinstance(tensor, paddle.Tensor) or "complex" in str(tensor.dtype):
        return _NO
    if limits is not None and not limits.fits(tensor):
        return _NO
    return tensor if limits is None or _all_finite(tensor) else _NOT_FINITE


def _fit_array(name, value, kinds, limits):
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        return _NO
    if limits is not None and not limits.fits(value):
        return _NO
    return value if limits is None or value.dtype.kind != "f" or np.isfinite(value).all() else _NOT_FINITE


def _all_finite(tensor):
    return "float" not in str(tensor.dtype) or bool(paddle.isfinite(tensor.astype("float32")).all())


def _fit_dtype(name, value, kinds, limits):
    """Paddle's, numpy's and torch's."""
    others = isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic))
    return value if others or str(value).startswith("torch.") or isinstance(value, paddle.dtype) else _NO


def _is_torch(value):
    """Told without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def _from_torch(tensor):
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # which numpy does not have
        return paddle.to_tensor(tensor.float().numpy()).astype("bfloat16")
    return paddle.to_tensor(tensor.numpy())


_FITTING = {
    **dict.fromkeys(_UNIONS, _fit_union),
    None: _fit_none,
    type(None): _fit_none,
    bool: _fit_bool,
    int: _fit_int,
    float: _fit_float,
    str: _fit_str,
    Literal: _fit_literal,
    list: _fit_list,
    tuple: _fit_tuple,
    collections.abc.Sequence: _fit_sequence,
    dict: _fit_dict,
    collections.abc.Mapping: _fit_dict,
    collections.abc.Callable: _fit_callable,
    paddle.Tensor: _fit_tensor,
    np.ndarray: _fit_array,
    paddle.dtype: _fit_dtype,
}

# Words for a message: one, several.
_WORDS = {
    bool: ("True or False", "True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a str", "str"),
    paddle.Tensor: ("a tensor", "tensors"),
    np.ndarray: ("an array", "arrays"),
    Image.Image: ("a PIL picture", "PIL pictures"),
    paddle.dtype: ("a dtype", "dtypes"),
    type(None): ("None", "None"),
    dict: ("a dict", "dicts"),
    collections.abc.Mapping: ("a dict", "dicts"),
    collections.abc.Callable: ("a function", "functions"),
}


def describe_type(kind: Any, several: bool = False, limits: Range | None = None) -> str:
    """An annotation in words: "a str or a list of str"; ``several`` gives the plural, ``limits`` are of its numbers."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        own = next((item for item in kind.__metadata__ if isinstance(item, Range)), limits)
        return describe_type(kind.__origin__, several, own)
    if origin in _UNIONS:
        return _listed(describe_type(part, several, limits) for part in inner)
    if origin is Literal:
        return _listed(repr(value) for value in inner)
    if _FITTING.get(origin or kind) in (_fit_list, _fit_tuple, _fit_sequence):
        of_what = [part for part in inner if part is not Ellipsis]
        words = _listed(describe_type(part, True, limits) for part in of_what) if of_what else "values"
        fixed = f"{len(inner)} " if origin is tuple and len(of_what) == len(inner) else ""
        return f"{'lists' if several else 'a list'} of {fixed}{words}"
    if origin is collections.abc.Callable and inner and isinstance(inner[0], list):
        return f"{'functions' if several else 'a function'} of {len(inner[0])} arguments"
    name = getattr(origin or kind, "__name__", str(kind))
    article = "an" if name[:1] in "AEIOUaeiou" else "a"
    words = _WORDS.get(origin or kind, (f"{article} {name}", f"{name} objects"))[several]
    if limits is not None and limits.axes and kind in (np.ndarray, paddle.Tensor):
        return f"{words} of {' or '.join(map(str, limits.axes))} axes"
    return f"{words}{limits}" if kind in (int, float) and limits is not None else words


def _listed(words: Iterable[str]) -> str:
    words = list(dict.fromkeys(words))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def shown(value: Any) -> str:
    """``value`` in a message: short, and of arrays and objects what they are."""
    if isinstance(getattr(value, "shape", None), (tuple, list)) and hasattr(value, "dtype") and len(value.shape):
        what = f"{type(value).__module__.partition('.')[0]} {type(value).__name__}"
        return f"a {what} {list(value.shape)} of {str(value.dtype).rpartition('.')[2]}"
    try:
        text = _short.repr(value)
    except Exception:  # noqa: BLE001 (whatever a stranger's repr raises)
        text = "<"
    return f"a {type(value).__name__}" if text.startswith("<") else text


def _hint(value: Any, kind: Any) -> str:
    """A further sentence for what is often given in place of ``kind``."""
    words = describe_type(kind)
    if isinstance(value, bytes) and "str" in words:
        return " Decode it: value.decode()."
    if isinstance(value, float) and value.is_integer() and "whole number" in words:
        return f" Pass {int(value)}."
    if isinstance(value, str) and "number" in words and _is_number_text(value):
        return f" Pass {value.strip()} without quotes."
    return ""


def _is_number_text(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
