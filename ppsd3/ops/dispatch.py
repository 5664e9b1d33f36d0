"""The table of kernels: for each operation its implementations in order of preference, and the choice among them.

An operation is a function under :func:`operation`; what the function itself says is the definition, the last entry of
its row. A call takes the first entry that :mod:`.settings` allow, whose needs :mod:`.features` meets, that is made for
the place and dtype of the tensors at hand, and that accepts the arguments. Nothing else in the package chooses.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple, TypeVar, cast

import paddle
from paddle import Tensor

from ..utils.errors import ConfigError
from ..utils.paddle_internals import is_autocasting
from . import features, proving, settings
from .shapes import tracked

TABLE: dict[str, Row] = {}  # name of an operation -> its row
FLOATS = ("float16", "bfloat16", "float32")
OPEN, GRAPH = "open", "static graph"  # in place of a dtype
_float32 = paddle.float32
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Implementation(NamedTuple):
    """One way to compute an operation, and when it can be taken.

    An entry with ``dtypes`` serves tensors that all have one of them, are not empty, and are outside of AMP and static
    graphs: what a kernel that reads memory needs. ``accepts`` and ``pays`` get the arguments of the call.
    """

    name: str  # unique in its row
    level: str  # of settings.LEVELS
    function: Callable[..., Any]  # takes what the operation takes
    place: str | None = None  # "cpu" or "gpu"; None for any
    dtypes: tuple[str, ...] = ()  # names; () for any
    features: tuple[str, ...] = ()  # of the machine
    precisions: tuple[str, ...] = settings.PRECISIONS  # at which float32_matmul_precision it may multiply
    gradients: bool = True  # whether a gradient is recorded
    graphs: bool = True  # whether it works in static graphs, where sizes are open
    accepts: Callable[..., bool] | None = None  # whether it can compute these arguments; None for all
    pays: Callable[..., bool] | None = None  # whether it is measured to be the fastest for them; None for all
    proof: proving.Proof | None = None  # how it is tried where it is first to compute; None needs no trial

    def serves(self, dtype: str | None) -> bool:
        """Whether it is made for a dtype, or what :func:`kind_of` says in its place; None is any."""
        return not (self.dtypes and dtype is not None and dtype not in self.dtypes) and (self.graphs or dtype != GRAPH)

    def serves_all(self) -> bool:
        """Whether it takes every call that comes to it."""
        return self.gradients and self.accepts is None and self.pays is None and self.proof is None

    def obstacle(self, state: settings.Settings) -> str | None:
        """Why settings or the machine do not allow it; None if they do."""
        if settings.LEVELS.index(self.level) > settings.LEVELS.index(state.level):
            return f"turned off by use_kernels({state.level!r})"
        if state.precision not in self.precisions:
            return f"not at float32_matmul_precision({state.precision!r})"
        return next((reason for reason in map(features.missing, self.features) if reason is not None), None)


def native(
    function: Callable[..., Any], name: str = "native", features: tuple[str, ...] = (), **more: Any
) -> Implementation:
    """The entry of a native kernel: float32 on the CPU."""
    needs = ("kernels", *features)
    return Implementation(
        name, "native", function, **{"place": "cpu", "dtypes": ("float32",), "features": needs, **more}
    )


def onednn(function: Callable[..., Any], name: str = "onednn", **more: Any) -> Implementation:
    """The entry of a function of :mod:`.onednn`: float32 on the CPU."""
    return Implementation(name, "onednn", function, "cpu", ("float32",), ("onednn",), **more)


def operation(*implementations: Implementation, deciding: int = 1) -> Callable[[_Function], _Function]:
    """Makes the function under it an operation, computed by the first of ``implementations`` that can be taken, else by
    the function itself.

    Args:
        deciding: number of its first arguments (tensors or None) whose place and dtype decide. With 0, the place is
            where Paddle computes at present.
    """

    def decorate(definition: _Function) -> _Function:
        row = Row(definition, implementations, deciding)
        choose = row.choose

        @functools.wraps(definition)
        def compute(*arguments, **options):
            return choose(arguments, options).function(*arguments, **options)

        TABLE[row.name] = row
        return cast(_Function, compute)

    return decorate


class Row:
    """An operation and its implementations, the definition last."""

    def __init__(
        self, definition: Callable[..., Any], implementations: Sequence[Implementation], deciding: int
    ) -> None:
        self.name: str = definition.__name__.strip("_")
        last = Implementation("reference", "reference", definition)
        self.implementations: tuple[Implementation, ...] = (*implementations, last)
        self._deciding = list(inspect.signature(definition).parameters)[:deciding]
        self._candidates = {}  # (settings, place, dtype) -> implementations to ask

    def add(self, implementation: Implementation) -> None:
        """Puts an implementation before the others."""
        self.implementations = (implementation, *self.implementations)
        self._candidates = {}

    def choose(self, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Implementation:
        """What computes a call with these arguments now."""
        tensors = arguments[: len(self._deciding)]
        if options:
            tensors += tuple(options[name] for name in self._deciding if name in options)
        key = (settings.current(), *kind_of(tensors))
        candidates = self._candidates.get(key)
        if candidates is None:
            candidates = self._candidates[key] = self._candidates_for(*key)
        for chosen in candidates:
            if not chosen.gradients and tracked(*tensors):
                continue
            if chosen.accepts is not None and not chosen.accepts(*arguments, **options):
                continue
            if chosen.pays is None or chosen.pays(*arguments, **options):
                break
        return chosen  # the last accepts everything

    def considered(
        self, state: settings.Settings, place: str, dtype: str | None
    ) -> Iterator[tuple[Implementation, str | None]]:
        """Yields (implementation for this place and dtype, why not or None); what is forced comes first."""
        forced = dict(state.forced).get(self.name)
        for chosen in sorted(self.implementations, key=lambda i: i.name != forced):
            if (chosen.place in (None, place)) and chosen.serves(dtype):
                yield chosen._replace(pays=None) if chosen.name == forced else chosen, chosen.obstacle(state)

    def _candidates_for(self, state, place, dtype):
        found = []
        for chosen, obstacle in self.considered(state, place, dtype):
            if obstacle is None:
                found.append(chosen if chosen.proof is None else self._tried(chosen))
                if chosen.serves_all():
                    break  # what comes later is not asked for, nor are its features looked for
        return tuple(found)

    def _tried(self, chosen):
        """An implementation that accepts what it has proven to compute as the definition does."""
        accepts = proving.accepts(self.name, chosen, self.implementations[-1].function)
        return chosen._replace(accepts=accepts)


def kind_of(tensors: Iterable[Tensor | None]) -> tuple[str, str]:
    """(place, dtype) of tensors, of which some may be None.

    The place is "cpu", "gpu" or "other". In place of a dtype there is :data:`GRAPH` in a static graph, and :data:`OPEN`
    where dtypes or places differ, or a tensor is empty, or AMP may cast.
    """
    if not paddle.in_dynamic_mode():
        return _device(), GRAPH  # a static graph's tensors have no place yet
    place = dtype = ""
    for x in tensors:
        if x is None:
            continue
        where = "cpu" if x.place.is_cpu_place() else "gpu" if x.place.is_gpu_place() else "other"
        what = "float32" if x.dtype is _float32 else str(x.dtype).split(".")[-1]
        if not place:
            place, dtype = where, what
        elif what != dtype or where != place:
            dtype = OPEN
        if 0 in x.shape:
            dtype = OPEN
    if not place or is_autocasting():
        return place or _device(), OPEN
    return place, dtype


def _device():
    kind = paddle.get_device().split(":")[0]
    return kind if kind in ("cpu", "gpu") else "other"


def choose(operation: str, *arguments: Any, **options: Any) -> Implementation:
    """What computes a call of an operation with these arguments now."""
    return TABLE[operation].choose(arguments, options)


def reference(function: _Function) -> _Function:
    """The definition of an operation, given the operation's function."""
    return inspect.unwrap(function)


def implementation(operation: str, name: str) -> Implementation:
    """An entry of the table.

    Raises:
        ConfigError: there is no such operation, or it has no such implementation.
    """
    if operation not in TABLE:
        raise ConfigError(f"{operation!r} is no operation of the table. Choose one of {', '.join(sorted(TABLE))}.")
    found = {i.name: i for i in TABLE[operation].implementations}
    if name not in found:
        raise ConfigError(
            f"The operation {operation} has no implementation {name!r}. Choose one of {', '.join(found)}."
        )
    return found[name]


def summary() -> list[str]:
    """Lines that say what computes each operation where Paddle computes now, and why a faster entry does not."""
    lines: dict[str, list[str]] = {}  # operations that have the same to say share a line
    for name, row in TABLE.items():
        taken, refused = [], {}
        for chosen, obstacle in row.considered(settings.current(), _device(), None):
            if obstacle is not None:
                refused.setdefault(obstacle, []).append(chosen.name)
            else:
                taken.append(chosen.name + ("" if chosen.proof is None else f" ({proving.told(name, chosen.name)})"))
                if chosen.serves_all() and not chosen.dtypes:
                    break
        reasons = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in refused.items())
        lines.setdefault(" > ".join(taken) + (f"  ({reasons})" if reasons else ""), []).append(name)
    return [f"{', '.join(names)}: {what}" for what, names in lines.items()]
