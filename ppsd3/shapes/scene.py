"""The shapes world: what a scene contains, and what a caption can state about it.

Geometry is in fractions of the picture's side, x to the right and y downwards, so that a scene has no
resolution. Colours are RGB in 0..255.
"""

from dataclasses import dataclass
from typing import Optional

SHAPES = ("circle", "square", "triangle", "cross", "ring")

# Any two lie at least 90 apart in RGB, and at least 100 from every background.
COLORS = {
    "red": (220, 30, 40),
    "green": (25, 150, 55),
    "blue": (40, 70, 235),
    "yellow": (252, 222, 35),
    "purple": (140, 40, 180),
    "orange": (250, 130, 15),
    "cyan": (35, 200, 228),
}

BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "grey": (150, 150, 150),
    "pink": (250, 200, 215),
    "mint": (195, 235, 205),
    "navy": (20, 26, 80),
    "brown": (85, 55, 35),
}

SIZES = {"small": 7.5 / 64, "large": 11 / 64}  # radius: half of the larger side of the bounding box

RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")  # GenEval's names

MAX_OBJECTS = 4


@dataclass(frozen=True)
class Object:
    """One shape in the picture; (x, y) is the middle of its bounding box in fractions of the side."""

    shape: str
    color: str
    size: str
    x: float
    y: float

    @property
    def pair(self) -> tuple[str, str]:
        """(colour, shape): the unit of attribute binding."""
        return self.color, self.shape


@dataclass(frozen=True)
class Scene:
    """One to four objects that never touch, on a plain background.

    ``task`` is the kind of caption that the scene was made for: one of `TASKS`, or "free".
    """

    objects: tuple[Object, ...]
    background: str
    task: str = "free"


@dataclass(frozen=True)
class Group:
    """``count`` equal objects as a caption names them; an attribute that is None is not stated."""

    shape: str
    color: Optional[str] = None
    size: Optional[str] = None
    count: int = 1


@dataclass(frozen=True)
class Statement:
    """What a caption states: all objects; optionally the relation of the first to the second, and the background."""

    groups: tuple[Group, ...]
    relation: Optional[str] = None
    background: Optional[str] = None


def relation_between(a: Object, b: Object) -> Optional[str]:
    """The relation of ``a`` to ``b``: one of `RELATIONS`, or None for diagonal neighbours.

    Scenes are laid out so that no case is ambiguous: centres are at least 0.3 apart along the axis and at most 0.2
    across it; those of diagonal neighbours are at least 0.3 apart both ways.
    """
    dx, dy = b.x - a.x, b.y - a.y
    if abs(dx) >= 0.3 and abs(dy) <= 0.2:
        return "left" if dx > 0 else "right"
    if abs(dy) >= 0.3 and abs(dx) <= 0.2:
        return "above" if dy > 0 else "below"
    return None
