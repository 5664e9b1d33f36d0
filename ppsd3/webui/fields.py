"""What a form asks for, read from where it is declared: the arguments of a call, and of each guidance's constructor."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from typing import Any

from ..pipelines.call_signature import KINDS, describe
from ..utils.checking import Range, fit
from ..utils.errors import InputError

# The arguments that a form shows first, in this order; the others follow in groups.
COMMON = (
    *("prompt", "negative_prompt", "image", "mask_image", "control_image", "control_mask", "strength"),
    *("num_inference_steps", "guidance_scale", "width", "height", "num_images_per_prompt"),
)

_LISTS = ("wholes", "numbers", "number or numbers")
_WHOLE = re.compile(r"[+-]?\d+")


@dataclasses.dataclass(frozen=True)
class Field:
    """One value that a form asks for.

    Args:
        name: as the call or the constructor knows it.
        kind: "text", "flag", "whole", "number", a list of numbers ("wholes", "numbers", "number or numbers"), "picture"
            or "picture or pictures"; see :data:`ppsd3.pipelines.call_signature.KINDS`.
        type: the annotation.
        default: what it is if it is left empty.
        text: what it means, in English.
        group: name of the group of arguments that declares it.
        limits: of its numbers.
        of_checkpoint: whether a checkpoint may have its own default.
    """

    name: str
    kind: str
    type: Any
    default: Any
    text: str = ""
    group: str = ""
    limits: Range | None = None
    of_checkpoint: bool = False

    def read(self, value: Any) -> Any:
        """What the call takes of ``value``, which a form's component or a settings file gave; None if it is empty.

        Raises:
            InputError: it is not of the field's type, or out of its range.
        """
        if value is None or (isinstance(value, str) and not value.strip() and self.kind != "text"):
            return None
        if self.kind in _LISTS and isinstance(value, str):
            value = [self._number(word) for word in value.replace(",", " ").split()]
            value = value[0] if self.kind == "number or numbers" and len(value) == 1 else value
        elif self.kind in ("whole", "number") and isinstance(value, str):
            value = self._number(value.strip())
        if self.kind == "whole" and isinstance(value, float) and value.is_integer():
            value = int(value)
        return fit(self.name, value, self.type, limits=self.limits, remedy=f" (`{self.name}`: {self.text})")

    def shown(self, value: Any) -> Any:
        """``value`` as a form shows it: the reverse of :meth:`read`."""
        if self.kind in _LISTS and value is not None:
            return " ".join(map(str, value if isinstance(value, (list, tuple)) else [value]))
        return value

    def _number(self, word: str) -> int | float:
        try:
            return int(word) if self.kind == "wholes" or _WHOLE.fullmatch(word) else float(word)
        except ValueError as error:
            what = "whole numbers" if self.kind == "wholes" else "numbers"
            raise InputError(f"`{self.name}` is {word[:100]!r}. Give {what}, with spaces between several.") from error


def fields_of(pipeline_class: Any) -> list[Field]:
    """The arguments of the pipeline's call that a form can ask for: first the common ones, then group by group."""
    arguments = pipeline_class.__call__.arguments
    found = [
        Field(a.name, a.kind, a.type, a.default, a.text, _group(arguments, a.name), a.limits, a.of_checkpoint)
        for a in describe(arguments)
        if a.option is not None
    ]
    places = {name: place for place, name in enumerate(COMMON)}
    return sorted(found, key=lambda field: places.get(field.name, len(COMMON)))


def _group(arguments: type, name: str) -> str:
    """Name of the dataclass that declares the argument with its meaning."""
    for declaring in arguments.__mro__:
        annotation = vars(declaring).get("__annotations__", {}).get(name)
        if hasattr(annotation, "__metadata__"):
            return declaring.__name__
    return ""


@functools.cache
def guidances() -> dict[str, tuple[Field, ...]]:
    """Name of each guidance of ppsd3 that is more than a scale -> what its constructor takes beside the scale."""
    from ..pipelines.stable_diffusion_3 import guidance

    found = {}
    for name, value in vars(guidance).items():
        is_public = inspect.isclass(value) and not name.startswith("_")
        if is_public and issubclass(value, guidance.Guidance) and not inspect.isabstract(value):
            taken = _constructor_fields(value)
            if taken:
                found[name] = taken
    return found


def _constructor_fields(guidance: type) -> tuple[Field, ...]:
    declared = typing.get_type_hints(guidance.__init__, include_extras=True)
    taken = []
    for parameter in inspect.signature(guidance).parameters.values():
        if parameter.name in ("scale", "base"):  # both are the form's `guidance_scale`
            continue
        type_, limits = declared[parameter.name], None
        if hasattr(type_, "__metadata__"):
            limits = next((item for item in type_.__metadata__ if isinstance(item, Range)), None)
            type_ = type_.__origin__
        inner = next((t for t in typing.get_args(type_) if hasattr(t, "__metadata__")), None)
        if inner is not None:  # Optional[Annotated[...]]
            type_ = typing.Optional[inner.__origin__]
        if parameter.name == "layers":
            type_, limits = list[int], Range(0)
        default = None if parameter.default is parameter.empty else parameter.default
        kind = {**KINDS, list[int]: "wholes"}[type_]
        taken.append(Field(parameter.name, kind, type_, default, _meaning(guidance, parameter.name), limits=limits))
    return tuple(taken)


def _meaning(guidance: type, name: str) -> str:
    """What the docstring says of a constructor's argument."""
    doc = inspect.cleandoc(guidance.__doc__ or "")
    for line in re.findall(r"^    ((?:\w+, )*\w+): ((?:.|\n {8})+)", doc, re.MULTILINE):
        if name in line[0].split(", "):
            return " ".join(line[1].split())
    return ""


def make_guidance(name: str, scale: float, values: dict[str, Any]) -> Any:
    """The guidance ``name`` at ``scale``, with the values of its other arguments; None for the plain scale.

    Raises:
        InputError: there is no such guidance, or it refuses a value.
    """
    from ..pipelines.stable_diffusion_3 import guidance

    if not name:
        return None
    if name not in guidances():
        raise InputError(f"There is no guidance {name!r}; there are {', '.join(guidances())}.")
    read = {field.name: field.read(values.get(field.name)) for field in guidances()[name]}
    missing = [field.name for field in guidances()[name] if read[field.name] is None and field.default is None]
    if "layers" in missing:
        raise InputError(f"{name} needs `layers`, the layers to leave out. Give their numbers, e.g. 7 8 9.")
    return getattr(guidance, name)(scale, **{key: value for key, value in read.items() if value is not None})
