"""The small world that the bundled model draws: `sample_scene`, `caption`, `render`.

>>> rng = np.random.default_rng(0)
>>> scene = sample_scene(rng)
>>> text, picture = caption(scene, rng), render(scene)
"""

from collections.abc import Sequence
from typing import Optional

import numpy as np

from ..utils.errors import InputError
from .held_out import is_held_out
from .rendering import RESOLUTION, render, render_batch
from .scene import BACKGROUNDS, COLORS, SHAPES, SIZES, TASKS, Object, Scene
from .wording import caption, phrase, state

__all__ = [
    "RESOLUTION",
    "SPLITS",
    "TASK_WEIGHTS",
    "Object",
    "Scene",
    "caption",
    "is_held_out",
    "phrase",
    "render",
    "render_batch",
    "sample_scene",
    "state",
]

SPLITS = ("train", "unseen")

# How often each kind of scene is drawn: what is hard to learn comes more often.
TASK_WEIGHTS = {
    "single_object": 0.06,
    "two_object": 0.18,
    "counting": 0.22,
    "colors": 0.05,
    "position": 0.27,
    "color_attr": 0.18,
    "free": 0.04,
}

_SHAPES, _COLORS, _SIZES, _BACKGROUNDS = SHAPES, tuple(COLORS), tuple(SIZES), tuple(BACKGROUNDS)
_KINDS, _KIND_EDGES = tuple(TASK_WEIGHTS), np.cumsum(list(TASK_WEIGHTS.values()))
assert set(_KINDS) == set(TASKS) | {"free"}

# Objects stand in the four quarters of the picture; the jitter leaves 2 pixels (of 64) to the quarter's border,
# which keeps objects at least 4 apart and 2 inside the frame.
_QUARTERS = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
_JITTER = {size: min(0.25 - radius - 2 / 64, 2 / 64) for size, radius in SIZES.items()}
_ACROSS = 0.05  # how far a row of two may lie from the picture's middle
_TILT = 0.03  # how far each of the two may leave that row
_ALONE = 0.08  # how far a lone object may lie from the middle


def sample_scene(rng: np.random.Generator, task: Optional[str] = None, split: str = "train") -> Scene:
    """Draws a random scene.

    Args:
        rng: numpy generator; the scene depends on nothing else.
        task: one of `TASKS` or "free"; by default drawn by `TASK_WEIGHTS`.
        split: "train" has no held-out combination, "unseen" has at least one (see `held_out`).

    Raises:
        InputError: an unknown task or split.
    """
    if task is not None and task not in TASK_WEIGHTS:
        raise InputError(f"task={task!r} is unknown: use one of {', '.join(_KINDS)}, or None.")
    if split not in SPLITS:
        raise InputError(f"split={split!r} is unknown: use one of {', '.join(SPLITS)}.")
    if task is None:
        task = _KINDS[min(np.searchsorted(_KIND_EDGES, rng.random(), side="right"), len(_KINDS) - 1)]
    while True:
        scene = _propose(rng, task)
        if is_held_out(scene) == (split == "unseen"):
            return scene


def _propose(rng, task) -> Scene:
    kinds = _KIND_SAMPLERS[task](rng)
    layout = _two_in_line if task == "position" else _layout
    sizes = [size for _, _, size in kinds]
    places = layout(rng, sizes)
    objects = tuple(Object(shape, color, size, x, y) for (color, shape, size), (x, y) in zip(kinds, places))
    return Scene(objects, _choose(rng, _BACKGROUNDS), task)


def _choose(rng, options: Sequence):
    return options[rng.integers(len(options))]


def _kind(rng):
    return _choose(rng, _COLORS), _choose(rng, _SHAPES), _choose(rng, _SIZES)


def _one(rng):
    return [_kind(rng)]


def _two_different(rng):
    """Two objects that differ in colour or shape."""
    a, b = _kind(rng), _kind(rng)
    while a[:2] == b[:2]:
        b = _kind(rng)
    return [a, b]


def _two_in_all(rng):
    """Two objects that differ in colour and shape, so that swapping their colours shows."""
    a, b = _kind(rng), _kind(rng)
    while a[0] == b[0] or a[1] == b[1]:
        b = _kind(rng)
    return [a, b]


def _alike(rng):
    return [_kind(rng)] * int(rng.choice(4, p=(0.1, 0.3, 0.3, 0.3)) + 1)


def _any(rng):
    """Two to four objects; in one scene of three some are alike."""
    count = int(rng.integers(2, 5))
    kinds = [_kind(rng) for _ in range(count)]
    if rng.random() < 1 / 3:
        alike = int(rng.integers(2, count + 1))
        kinds[:alike] = [kinds[0]] * alike
    return kinds


_KIND_SAMPLERS = {
    "single_object": _one,
    "two_object": _two_different,
    "counting": _alike,
    "colors": _one,
    "position": _two_different,
    "color_attr": _two_in_all,
    "free": _any,
}


def _layout(rng, sizes):
    """Places for one to four objects of the given sizes."""
    if len(sizes) == 1:
        return [tuple(rng.uniform(0.5 - _ALONE, 0.5 + _ALONE, 2).tolist())]
    if len(sizes) == 2 and rng.random() < 2 / 3:
        return _two_in_line(rng, sizes)
    if len(sizes) == 2:
        corner = int(rng.integers(4))
        quarters = [_QUARTERS[corner], _QUARTERS[3 - corner]]
    else:
        quarters = [_QUARTERS[i] for i in rng.permutation(4)]
    shifts = rng.uniform(-1, 1, (len(sizes), 2)).tolist()
    return [
        (qx + dx * _JITTER[size], qy + dy * _JITTER[size]) for (qx, qy), (dx, dy), size in zip(quarters, shifts, sizes)
    ]


def _two_in_line(rng, sizes):
    """Two objects in a row or a column, in either order."""
    middle = rng.uniform(0.5 - _ACROSS, 0.5 + _ACROSS)
    ends = (0.25, 0.75) if rng.random() < 0.5 else (0.75, 0.25)
    along = [end + shift * _JITTER[size] for end, shift, size in zip(ends, rng.uniform(-1, 1, 2).tolist(), sizes)]
    across = (middle + rng.uniform(-_TILT, _TILT, 2)).tolist()
    return list(zip(along, across) if rng.random() < 0.5 else zip(across, along))
