"""Renders batches of scenes, antialiased by signed distance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene

RESOLUTION = 64

# Proportions to the radius, chosen so that the shapes look equally large and differ clearly at 13 pixels.
SQUARE_HALF_SIDE = 0.88
TRIANGLE_HALF_HEIGHT = 0.87
CROSS_HALF_ARM = 0.34
RING_HOLE = 0.5
STRIPED_SCALE = 13 / 11


def _circle(x, y, r):
    return np.sqrt(x * x + y * y) - r


def _square(x, y, r):
    return np.maximum(np.abs(x), np.abs(y)) - SQUARE_HALF_SIDE * r


def _triangle(x, y, r):
    half = TRIANGLE_HALF_HEIGHT * r
    side = (np.abs(x) * (2 * half) - (y + half) * r) / np.sqrt(4 * half * half + r * r)
    return np.maximum(y - half, side)


def _cross(x, y, r):
    x, y, arm = np.abs(x), np.abs(y), CROSS_HALF_ARM * r
    return np.minimum(np.maximum(x - r, y - arm), np.maximum(x - arm, y - r))


def _ring(x, y, r):
    distance = np.sqrt(x * x + y * y)
    return np.maximum(distance - r, RING_HOLE * r - distance)


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross, "ring": _ring}
assert tuple(_DISTANCES) == SHAPES


def _heart(x, y, r):
    """A square on its corner, with half a circle on each of its upper sides."""
    half, x = r / (1 + math.sqrt(0.5)), np.abs(x)
    y = y - half * (1 - math.sqrt(0.5)) / 2  # to the middle of the square
    circle = np.sqrt((x - half * math.sqrt(0.5)) ** 2 + (y + half * math.sqrt(0.5)) ** 2) - half
    return np.minimum((x + np.abs(y)) * math.sqrt(0.5) - half, circle)


def _striped(distance):
    """Three bars of the shape; the ground shows between them. Larger, as bars of fewer pixels would blur."""

    def bars(x, y, r):
        r = STRIPED_SCALE * r
        return np.maximum(distance(x, y, r), 0.2 * r - np.abs(np.abs(y) - 0.4 * r))

    return bars


# What the bundled model never saw, to teach it: a shape, and a texture of two shapes. The world does not sample these.
NEW_SHAPES = {"heart": _heart, "striped circle": _striped(_circle), "striped square": _striped(_square)}


def coverage(shape: str, x: Any, y: Any, radius: Any) -> np.ndarray:
    """Share of each pixel that the shape covers, 0..1; offsets from its middle and radius in pixels, broadcast."""
    distance = _DISTANCES.get(shape) or NEW_SHAPES[shape]
    return np.clip(0.5 - distance(x, y, radius), 0.0, 1.0)


def render_batch(
    scenes: Sequence[Scene],
    resolution: int = RESOLUTION,
    colors: Mapping[str, tuple[int, int, int]] = COLORS,
    backgrounds: Mapping[str, tuple[int, int, int]] = BACKGROUNDS,
) -> np.ndarray:
    """Draws scenes as uint8 [B, resolution, resolution, 3], RGB; ``colors`` and ``backgrounds`` say what names mean."""
    margin = math.ceil(STRIPED_SCALE * max(SIZES.values()) * resolution) + 1  # so that windows never leave the canvas
    side = resolution + 2 * margin
    canvas = np.empty((len(scenes), side, side, 3), np.float32)
    canvas[:] = np.array([backgrounds[s.background] for s in scenes], np.float32).reshape(-1, 1, 1, 3)

    window = np.arange(-margin, margin)
    placed = [(b, o) for b, scene in enumerate(scenes) for o in scene.objects]
    for shape in (*SHAPES, *NEW_SHAPES):
        chosen = [(b, o) for b, o in placed if o.shape == shape]
        if not chosen:
            continue
        batch = np.array([b for b, _ in chosen])
        middle = np.array([(o.x, o.y) for _, o in chosen]) * resolution  # [K, 2] in pixels
        radius = np.array([SIZES[o.size] for _, o in chosen], np.float32) * resolution
        color = np.array([colors[o.color] for _, o in chosen], np.float32)
        pixel = np.rint(middle).astype(int)[:, :, None] + window  # [K, 2, P]
        offset = (pixel + 0.5 - middle[:, :, None]).astype(np.float32)
        mask = coverage(shape, offset[:, 0, None, :], offset[:, 1, :, None], radius[:, None, None])
        pixel += margin
        for k in range(len(chosen)):
            columns, rows = pixel[k]
            region = canvas[batch[k], rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            region += mask[k, :, :, None] * (color[k] - region)
    inner = canvas[:, margin:-margin, margin:-margin]
    return np.rint(inner).astype(np.uint8)


def render(scene: Scene, resolution: int = RESOLUTION) -> np.ndarray:
    """Draws one scene as uint8 [resolution, resolution, 3], RGB."""
    return render_batch([scene], resolution)[0]


def silhouettes(scenes: Sequence[Scene], resolution: int = RESOLUTION) -> np.ndarray:
    """The objects in white on black, uint8 [B, resolution, resolution, 3]: shapes and places without colours."""
    white, black = dict.fromkeys(COLORS, (255, 255, 255)), dict.fromkeys(BACKGROUNDS, (0, 0, 0))
    return render_batch(scenes, resolution, white, black)


def edges(pictures: np.ndarray, contrast: float = 45.0) -> np.ndarray:
    """The edges in white on black: pixels that differ from a neighbour's colour.

    Args:
        pictures: uint8 [B, H, W, 3], RGB.
        contrast: least distance of the two colours in RGB.
    """
    values, found = pictures.astype(np.float32), np.zeros(pictures.shape[:3], bool)
    rows = np.linalg.norm(values[:, 1:] - values[:, :-1], axis=-1) > contrast
    columns = np.linalg.norm(values[:, :, 1:] - values[:, :, :-1], axis=-1) > contrast
    for part, differs in (
        (found[:, 1:], rows),
        (found[:, :-1], rows),
        (found[:, :, 1:], columns),
        (found[:, :, :-1], columns),
    ):
        part |= differs
    return np.where(found[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=-1)
