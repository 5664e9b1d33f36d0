"""Detects the objects in a picture, and scores pictures against prompts.

Detection uses the world's palette and shapes, no learned model: pixels that differ from the background are split into
connected pieces; each piece gets a colour (the palette's nearest), a soft mask (how far each pixel lies from the
background towards that colour), and the shape whose exact mask, moved and scaled to the same centroid and area,
overlaps it best. A piece that fits no shape or colour well has None there: it is something that no prompt asks for.

The judge is stricter than GenEval's, which asks for presence: a picture meets a prompt if it shows exactly the named
objects with the named attributes and nothing else, in the named relation, on the named background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np

from ..utils.errors import InputError
from .prompts import Requirement
from .rendering import (
    CROSS_HALF_ARM,
    RESOLUTION,
    RING_HOLE,
    SQUARE_HALF_SIDE,
    TRIANGLE_HALF_HEIGHT,
    coverage,
    silhouettes,
)
from .scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Group, Scene

STANDS_OUT = 45.0  # RGB distance from the background above which a pixel belongs to an object
COLOR_TOLERANCE = 60.0  # RGB distance of a piece's colour to the palette's
BACKGROUND_TOLERANCE = 32.0  # the two nearest backgrounds are 66 apart
UNEVEN_TOLERANCE = 55.0  # RGB distance of a pixel to the line between background and the piece's colour
UNEVEN_SHARE = 0.12  # share of such pixels above which a piece has no single colour
MIN_AREA = 10 / RESOLUTION**2  # smaller pieces are ignored; the smallest shape has 73 / 64^2
EDGE_CONTRAST = 2.5  # steepens soft edges before masks are compared, so that blur costs little
MIN_LEAD = 0.05  # of the best shape's overlap over the next
# Least soft intersection over union of a piece with the shape; holes and points blur first.
MIN_OVERLAP = {"circle": 0.92, "square": 0.87, "triangle": 0.84, "cross": 0.82, "ring": 0.76}
MIN_OVERLAP.update({"heart": 0.86, "striped circle": 0.70, "striped square": 0.68})
RADIUS_RANGE = (4.5 / 64, 14 / 64)
SIZE_BORDER = sum(SIZES.values()) / 2

MIN_DISTANCE = 0.15  # along the axis of a relation, in sides of the picture

# Area / radius^2, and how far the centroid lies below the bounding box's middle / radius.
_AREAS = {
    "circle": np.pi,
    "square": 4 * SQUARE_HALF_SIDE**2,
    "triangle": 2 * TRIANGLE_HALF_HEIGHT,
    "cross": 8 * CROSS_HALF_ARM - 4 * CROSS_HALF_ARM**2,
    "ring": np.pi * (1 - RING_HOLE**2),
}
_CENTROIDS = {"triangle": TRIANGLE_HALF_HEIGHT / 3}


def _measure(shape, radius=200):
    """The same two numbers of a new shape, from a large picture of it."""
    middle = np.arange(-1.5 * radius, 1.5 * radius) + 0.5
    mask = coverage(shape, middle[None, :], middle[:, None], radius)
    return float(mask.sum() / radius**2), float(mask.sum(1) @ middle / mask.sum() / radius)


@cache
def _proportions(shape: str) -> tuple[float, float]:
    """Area / radius^2, and how far the centroid lies below the bounding box's middle / radius."""
    return (_AREAS[shape], _CENTROIDS.get(shape, 0)) if shape in SHAPES else _measure(shape)


_COLOR_NAMES, _COLOR_VALUES = tuple(COLORS), np.array(list(COLORS.values()), np.float32)
_BACKGROUND_NAMES, _BACKGROUND_VALUES = tuple(BACKGROUNDS), np.array(list(BACKGROUNDS.values()), np.float32)


@dataclass(frozen=True)
class FoundObject:
    """An object in a picture; its shape, colour or size is None if it is not one of the world's."""

    shape: str | None
    color: str | None
    size: str | None
    x: float
    y: float
    overlap: float  # soft intersection over union with the shape it resembles most


@dataclass(frozen=True)
class Reading:
    """The content of a picture; ``background`` is None if it is not one of the world's."""

    objects: tuple[FoundObject, ...]
    background: str | None


def read_picture(image: Any, new_shapes: Sequence[str] = ()) -> Reading:
    """Finds the objects and the background of a picture.

    Args:
        image: uint8 array [H, W, 3] in RGB with H = W, or a PIL image of such size.
        new_shapes: names in :data:`.rendering.NEW_SHAPES` that objects may have too. Bars are apart: with a striped
            shape all that stands out is read as one object.

    Raises:
        InputError: another shape or dtype.
    """
    pixels = _as_pixels(image)
    ground = _ground(pixels)
    distance = np.linalg.norm(pixels - ground, axis=-1)
    mask = distance > STANDS_OUT
    labels = mask.astype(int) if any("striped" in shape for shape in new_shapes) else _connected_pieces(mask)
    pieces = (labels == label for label in np.unique(labels[labels > 0]))
    found = (_read_piece(piece, pixels, ground, distance, (*SHAPES, *new_shapes)) for piece in pieces)
    background = _nearest(ground, _BACKGROUND_NAMES, _BACKGROUND_VALUES, BACKGROUND_TOLERANCE)
    return Reading(tuple(o for o in found if o is not None), background)


def _ground(pixels):
    """The background's colour: the median of the frame."""
    frame = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
    return np.median(np.concatenate([part.reshape(-1, 3) for part in frame]), axis=0)


def _as_pixels(image) -> np.ndarray:
    pixels = np.asarray(image if isinstance(image, np.ndarray) else image.convert("RGB"))
    if pixels.ndim != 3 or pixels.shape[0] != pixels.shape[1] or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(
            f"image has shape {pixels.shape} and dtype {pixels.dtype}: the judge reads square RGB "
            "pictures, uint8 [H, W, 3] with H = W."
        )
    return pixels.astype(np.float32)


def _nearest(value, names, palette, tolerance) -> str | None:
    distances = np.linalg.norm(palette - value, axis=-1)
    best = int(distances.argmin())
    return names[best] if distances[best] <= tolerance else None


def _connected_pieces(mask: np.ndarray) -> np.ndarray:
    """Labels 4-connected pieces of a bool mask [H, W] by positive numbers, 0 elsewhere.

    Each pixel repeatedly takes the largest label of its row's and its column's unbroken run, so the number of
    rounds is the number of turns of a piece, not its length.
    """
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = _spread_along_rows(_spread_along_rows(labels, mask).T, mask.T).T
        if np.array_equal(spread, labels):
            return labels
        labels = spread


def _spread_along_rows(labels, mask):
    """The largest label of each unbroken run of the mask within a row."""
    starts = mask.copy()
    starts[:, 1:] &= ~mask[:, :-1]
    run = np.cumsum(starts.ravel()).reshape(mask.shape)  # runs numbered from 1
    largest = np.zeros(run[-1, -1] + 1, labels.dtype)
    np.maximum.at(largest, run[mask], labels[mask])
    return np.where(mask, largest[run], 0)


def _read_piece(piece, pixels, ground, distance, shapes) -> FoundObject | None:
    """Colour, shape and place of one piece (bool [H, W]); None if it is too small."""
    side = pixels.shape[0]
    solid = piece & (distance >= 0.8 * np.percentile(distance[piece], 80))
    color = np.median(pixels[solid], axis=0)
    towards = color - ground
    near = _grow(piece)
    mask = np.where(near, np.clip((pixels - ground) @ towards / (towards @ towards), 0, 1), 0)
    area = float(mask.sum())
    if area < MIN_AREA * side**2:
        return None

    middle = np.arange(side) + 0.5
    x, y = float(mask.sum(0) @ middle / area), float(mask.sum(1) @ middle / area)
    shape, radius, overlap = _classify(mask, near, x, y, area, shapes)
    strayed = np.linalg.norm(pixels - ground - mask[..., None] * towards, axis=-1)[piece] > UNEVEN_TOLERANCE
    name = _nearest(color, _COLOR_NAMES, _COLOR_VALUES, COLOR_TOLERANCE) if strayed.mean() < UNEVEN_SHARE else None
    y -= _proportions(shape)[1] * radius if shape else 0
    return FoundObject(shape, name, _size(radius / side), x / side, y / side, overlap)


def _grow(mask):
    """The mask and its neighbours, two pixels far along the axes."""
    grown = mask.copy()
    for step in (1, 2):
        grown[step:] |= mask[:-step]
        grown[:-step] |= mask[step:]
        grown[:, step:] |= mask[:, :-step]
        grown[:, :-step] |= mask[:, step:]
    return grown


def _classify(mask, near, x, y, area, shapes):
    """The best shape (None if the fit is poor or undecided), its radius in pixels, and its overlap."""
    rows, columns = np.nonzero(near.any(1))[0], np.nonzero(near.any(0))[0]
    rows, columns = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    cut = _steepen(mask[rows, columns])
    dx = np.arange(columns.start, columns.stop)[None, :] + 0.5 - x
    dy = np.arange(rows.start, rows.stop)[:, None] + 0.5 - y
    fits = []
    for shape in shapes:
        proportion, centroid = _proportions(shape)
        radius = float(np.sqrt(area / proportion))
        exact = coverage(shape, dx, dy + centroid * radius, radius)
        lost = max(0.0, area - exact.sum())  # what the window cuts off an ill-fitting template
        exact = _steepen(exact)
        fits.append((float(np.minimum(cut, exact).sum() / (np.maximum(cut, exact).sum() + lost)), radius, shape))
    (overlap, radius, shape), (second, _, _) = sorted(fits, reverse=True)[:2]
    clear = overlap >= MIN_OVERLAP[shape] and overlap - second >= MIN_LEAD
    return (shape if clear else None), radius, overlap


def _steepen(mask):
    return np.clip((mask - 0.5) * EDGE_CONTRAST + 0.5, 0, 1)


def _size(radius) -> str | None:
    if not RADIUS_RANGE[0] <= radius <= RADIUS_RANGE[1]:
        return None
    return "small" if radius < SIZE_BORDER else "large"


def meets(requirement: Requirement, reading: Reading) -> bool:
    """Whether the picture shows exactly what the requirement's statement says."""
    statement = requirement.statement
    if statement.background is not None and reading.background != statement.background:
        return False
    slots = [group for group in statement.groups for _ in range(group.count)]
    if len(slots) != len(reading.objects):
        return False
    return any(
        all(_fits(group, found) for group, found in zip(slots, order))
        and (statement.relation is None or stands(order[0], statement.relation, order[1]))
        for order in permutations(reading.objects)
    )


def _fits(group: Group, found: FoundObject) -> bool:
    return (
        found.shape == group.shape
        and found.color is not None
        and found.size is not None
        and group.color in (None, found.color)
        and group.size in (None, found.size)
    )


def stands(a: FoundObject, relation: str, b: FoundObject) -> bool:
    """Whether ``a`` is in this relation to ``b``: clearly apart along its axis, and more than across it."""
    dx, dy = b.x - a.x, b.y - a.y
    along, across = {"left": (dx, dy), "right": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[relation]
    return along >= MIN_DISTANCE and along > abs(across)


def score(requirements: Sequence[Requirement], images: Sequence[Any]) -> dict[str, float]:
    """Share of pictures that meet their requirement, by task, and "overall", the mean over the tasks present.

    Args:
        requirements: one per picture; tasks in any order and number.
        images: what `read_picture` takes, or readings.

    Raises:
        InputError: no pictures, or not one per requirement.
    """
    if not len(requirements) or len(requirements) != len(images):
        raise InputError(f"{len(images)} images for {len(requirements)} requirements: give one image each.")
    results: dict[str, list] = {}
    for requirement, image in zip(requirements, images):
        reading = image if isinstance(image, Reading) else read_picture(image)
        results.setdefault(requirement.task, []).append(meets(requirement, reading))
    shares = {task: sum(passed) / len(passed) for task, passed in results.items()}
    return {**shares, "overall": sum(shares.values()) / len(shares)}


def silhouette_overlap(scene: Scene, image: Any) -> float:
    """Intersection over union of where a scene's objects are and where those of a picture are, 0..1.

    Objects are filled: asked are the pixels that an object covers by half (the hole of a ring is no part of it), drawn
    are the pixels of each piece that are at least half as far from the ground as the piece's own colour.

    Args:
        image: as `read_picture` takes it.
    """
    pixels = _as_pixels(image)
    asked = silhouettes([scene], len(pixels))[0, :, :, 0] > 127
    distance = np.linalg.norm(pixels - _ground(pixels), axis=-1)
    labels, drawn = _connected_pieces(distance > STANDS_OUT), np.zeros_like(asked)
    for label in np.unique(labels[labels > 0]):
        piece = labels == label
        drawn |= piece & (distance >= np.percentile(distance[piece], 80) / 2)
    return float((asked & drawn).sum() / max(1, (asked | drawn).sum()))
