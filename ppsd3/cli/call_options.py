"""Options for the arguments of a pipeline's call, made from where they are declared: a new argument has its option."""

from __future__ import annotations

from typing import Any

from ..utils.errors import InputError
from ..utils.images import open_picture, read_pictures

# Kind of an argument -> how argparse reads it. Pictures are named by files.
_READERS = {
    "text": {"type": str, "metavar": "TEXT"},
    "whole": {"type": int, "metavar": "N"},
    "number": {"type": float, "metavar": "X"},
    "wholes": {"type": int, "nargs": "+", "metavar": "N"},
    "numbers": {"type": float, "nargs": "+", "metavar": "X"},
    "number or numbers": {"type": float, "nargs": "+", "metavar": "X"},
    "picture": {"metavar": "FILE"},
    "picture or pictures": {"metavar": "FILE", "action": "append"},
}


def add_call_options(parser, *pipeline_classes, only=None):
    """An option for each argument of the calls of these pipelines that a command line can give, with its default.

    Args:
        only: names of arguments; None for all.
    """
    for argument in _arguments(pipeline_classes, only):
        default, own = argument.default, argument.of_checkpoint
        shown = "" if default is None else f" (default: {default}{', or what the checkpoint says' if own else ''})"
        text = (argument.text.rstrip(".") + shown).replace("%", "%%")
        parser.add_argument(
            argument.option, dest=argument.name, default=None if own else default, help=text, **_READERS[argument.kind]
        )


def given_values(arguments, *pipeline_classes, only=None):
    """dict: argument of the calls -> what the parsed options say, pictures as the names of their files."""
    return {argument.name: getattr(arguments, argument.name) for argument in _arguments(pipeline_classes, only)}


def call_arguments(arguments: Any, pipeline_class: Any, others: Any = (), only: Any = None) -> dict[str, Any]:
    """Keyword arguments of the call of ``pipeline_class``; pictures are opened. What the checkpoint may say, and the
    command line does not, is None: see :meth:`ppsd3.pipelines.call_defaults.CallDefaults.with_call_defaults`.

    Args:
        others: pipelines whose options the command has too.

    Raises:
        InputError: a picture cannot be opened, or an option is given that only another pipeline has.
    """
    taken = {argument.name: argument for argument in _arguments([pipeline_class], only)}
    for argument in _arguments(others, only):
        if argument.name not in taken and getattr(arguments, argument.name) not in (None, argument.default):
            raise InputError(f"{argument.option} has no effect with the other options that are given. Leave it out.")
    return {name: _value(argument, getattr(arguments, name)) for name, argument in taken.items()}


def _opened(argument, path):
    """The picture in a file: a mask in grey, anything else in RGB."""
    source, is_mask = f"{argument.option} {path}", "mask" in argument.name
    picture: Any = read_pictures(source, open_picture(path, source), 1 if is_mask else 3)
    return picture.convert("L") if is_mask else picture


def _arguments(pipeline_classes, only):
    found = {}
    for pipeline_class in pipeline_classes:
        for argument in pipeline_class.call_arguments():
            if argument.option is not None and argument.name != "prompt" and (only is None or argument.name in only):
                found.setdefault(argument.name, argument)
    return list(found.values())


def _value(argument, value):
    if value is None:
        return None
    if argument.kind == "picture":
        return _opened(argument, value)
    if argument.kind == "picture or pictures":
        value = [_opened(argument, path) for path in value]
    one = " or " in argument.kind and isinstance(value, list) and len(value) == 1
    return value[0] if one else value
