"""GenEval's six tasks in the shapes world, asked only with combinations that training never shows.

| task          | example                                          | unseen in training                          |
|---------------|--------------------------------------------------|---------------------------------------------|
| single_object | a large ring on a mint background                | this shape alone in this size on this ground |
| two_object    | a circle and a ring on a brown background        | these two shapes on this ground             |
| counting      | three green triangles                            | this number of this (colour, shape)         |
| colors        | a purple ring                                    | this (colour, shape)                        |
| position      | a blue square to the left of a yellow ring       | the first standing so to the second         |
| color_attr    | a red circle and a blue square                   | these two (colour, shape) in one picture    |

A quarter of the counting, position and color_attr prompts are harder still: they hold a (colour, shape) that
training never shows at all. `held_out` says why no training caption can equal one of these prompts.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from ..utils.errors import InputError
from .held_out import HELD_OUT_PAIRS, is_pair_held_out, states_held_out
from .scene import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, TASKS, Group, Statement
from .wording import phrase

UNSEEN_PAIR_SHARE = 0.25  # of the prompts in tasks where an unseen pair is not the point itself


@dataclass(frozen=True)
class Requirement:
    """What a picture must show to meet a prompt of a task: exactly what the statement says."""

    task: str
    statement: Statement


def evaluation_prompts(task: str, n: int, seed: int = 0) -> list[tuple[str, Requirement]]:
    """Draws ``n`` different prompts of a task, each with what it requires; plain wording, as GenEval's.

    Plain statements are taken first; colours, sizes and backgrounds are added when those are used up. The
    order is random, and the choice depends on ``seed`` alone.

    Raises:
        InputError: an unknown task, or more prompts than the task has.
    """
    if task not in TASKS:
        raise InputError(f"task={task!r} is unknown: use one of {', '.join(TASKS)}.")
    statements = [s for s in _STATEMENTS[task]() if states_held_out(s)]
    if n < 1 or n > len(statements):
        raise InputError(f"n={n} prompts of task {task!r} are not to be had: ask for 1 to {len(statements)}.")
    rng = np.random.default_rng([seed, TASKS.index(task)])
    ordered = sorted(zip(map(_detail, statements), rng.random(len(statements)), statements), key=lambda row: row[:2])
    chosen = _mix([row[2] for row in ordered], n)
    return [(phrase(chosen[i]), Requirement(task, chosen[i])) for i in rng.permutation(n)]


def _detail(statement: Statement) -> int:
    """Number of optional attributes in a statement: orders plain statements first."""
    said = [value for group in statement.groups for value in (group.color, group.size)] + [statement.background]
    return sum(value is not None for value in said)


def _mix(statements, n):
    """Takes ``n`` in order, about a quarter of them with an unseen pair where there are both kinds."""
    unseen, others = [], []
    for statement in statements:
        hard = any(g.color and is_pair_held_out(g.color, g.shape) for g in statement.groups)
        (unseen if hard else others).append(statement)
    wanted = round(n * UNSEEN_PAIR_SHARE)
    wanted = min(len(unseen), max(wanted, n - len(others)))
    return unseen[:wanted] + others[: n - wanted]


_ANY_BACKGROUND = (None,) + tuple(BACKGROUNDS)
_ANY_SIZE = (None,) + tuple(SIZES)
_PAIRS = tuple(product(COLORS, SHAPES))


def _single_object():
    for shape, size, background, color in product(SHAPES, SIZES, BACKGROUNDS, (None,) + tuple(COLORS)):
        if color is None or not is_pair_held_out(color, shape):
            yield Statement((Group(shape, color, size),), background=background)


def _two_object():
    for a, b, background, (size_a, size_b) in product(
        SHAPES, SHAPES, BACKGROUNDS, [(None, None), *product(SIZES, SIZES)]
    ):
        if a != b:
            yield Statement((Group(a, size=size_a), Group(b, size=size_b)), background=background)


def _counting():
    for count, (color, shape), background in product((2, 3, 4), _PAIRS, _ANY_BACKGROUND):
        yield Statement((Group(shape, color, count=count),), background=background)


def _colors():
    for (color, shape), size, background in product(sorted(HELD_OUT_PAIRS), _ANY_SIZE, _ANY_BACKGROUND):
        yield Statement((Group(shape, color, size),), background=background)


def _position():
    for a, relation, b in product(_PAIRS, RELATIONS, _PAIRS):
        if a != b:
            yield Statement((_named(a), _named(b)), relation)


def _color_attr():
    for a, b in product(_PAIRS, _PAIRS):
        if a[0] != b[0] and a[1] != b[1]:
            yield Statement((_named(a), _named(b)))


def _named(pair):
    color, shape = pair
    return Group(shape, color)


_STATEMENTS = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
