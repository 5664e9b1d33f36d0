"""Sizes in which pictures are trained: one, or one for each aspect ratio (buckets)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image

from ...utils.errors import InputError

Size = tuple[int, int]  # width, height


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Sizes of about ``resolution`` squared pixels, whose sides are multiples of ``step``.

    Args:
        resolution: side of the square one, in pixels.
        step: multiple; of the VAE's factor times the patch size, 16 for the published models.
        max_aspect: of the longest one, long side by short side; 1 has the square alone.

    Raises:
        InputError: ``resolution`` is no multiple of ``step``, or ``max_aspect`` below 1.
    """

    resolution: int = 1024
    step: int = 64
    max_aspect: float = 2.0

    def __post_init__(self) -> None:
        if self.resolution < self.step or self.resolution % self.step:
            raise InputError(f"resolution is {self.resolution}; it must be a multiple of {self.step} pixels.")
        if not self.max_aspect >= 1:
            raise InputError(f"max_aspect is {self.max_aspect!r}; it must be at least 1 (the square alone).")

    @property
    def sizes(self) -> list[Size]:
        """All of them, from the widest to the tallest; of each width the tallest that has no more pixels."""
        side, step = self.resolution, self.step
        found = {(side, side)}
        for long in range(side + step, int(side * self.max_aspect) + 1, step):
            short = side * side // long // step * step
            if short >= step and long / short <= self.max_aspect:
                found |= {(long, short), (short, long)}
        return sorted(found, key=lambda size: -size[0] / size[1])

    def nearest(self, size: Size) -> Size:
        """The bucket of a picture: the one whose aspect ratio is the nearest."""
        aspect = math.log(size[0] / size[1])
        return min(self.sizes, key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - aspect))


@dataclasses.dataclass(frozen=True)
class Crop:
    """A picture's part that is trained: scaled to cover the bucket, cut to it.

    Args:
        size: of the bucket.
        place: where the cut lies in what is left over, 0 to 1 along both axes; 0.5 is the centre.
        flip: mirrored left to right.
    """

    size: Size
    place: tuple[float, float] = (0.5, 0.5)
    flip: bool = False

    def apply(self, picture: Image.Image) -> np.ndarray:
        """uint8 [height, width, 3] of an RGB picture."""
        width, height = self.size
        scale = max(width / picture.width, height / picture.height)
        scaled = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
        if scaled != picture.size:
            picture = picture.resize(scaled, Image.Resampling.LANCZOS)
        left = round((scaled[0] - width) * self.place[0])
        top = round((scaled[1] - height) * self.place[1])
        pixels = np.asarray(picture.crop((left, top, left + width, top + height)), np.uint8)
        return np.ascontiguousarray(pixels[:, ::-1]) if self.flip else pixels
