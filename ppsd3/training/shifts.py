"""How far times are shifted towards noise for a picture's size: as pipelines shift the sigmas that they sample at."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Union

from ..pipelines.stable_diffusion_3.denoising import SHIFTS, resolution_shift


@dataclasses.dataclass(frozen=True)
class SquareRootShift:
    """A shift that grows with the side of the picture (paper, section 5.3.2).

    Args:
        shift: of a picture of ``image_seq_len`` tokens, e.g. 3 at 4096 tokens, which are 1024x1024 pixels.
    """

    shift: float
    image_seq_len: int

    def __call__(self, image_seq_len: int) -> float:
        """The shift of a picture of so many tokens."""
        return self.shift * math.sqrt(image_seq_len / self.image_seq_len)


@dataclasses.dataclass(frozen=True)
class DynamicShift:
    """The shift of a scheduler with ``use_dynamic_shifting``: its logarithm is linear in the number of image tokens.

    Args:
        base_image_seq_len, max_image_seq_len: numbers of tokens at which ``mu`` is ``base_shift`` and ``max_shift``.
        time_shift_type: "exponential", by ``exp(mu)``, or "linear", by ``mu``.
    """

    base_image_seq_len: int
    max_image_seq_len: int
    base_shift: float
    max_shift: float
    time_shift_type: str = "exponential"

    def __call__(self, image_seq_len: int) -> float:
        """The shift of a picture of so many tokens."""
        numbers = (self.base_image_seq_len, self.max_image_seq_len, self.base_shift, self.max_shift)
        mu = resolution_shift(image_seq_len, *numbers)
        return math.exp(mu) if self.time_shift_type == "exponential" else mu


SizeShift = Union[SquareRootShift, DynamicShift]


def dynamic_shift(scheduler: Any) -> DynamicShift | None:
    """The shift by size that pipelines sample at with ``scheduler``; None if it is the same at all sizes."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting", False):
        return None
    numbers = {name: config.get(name, default) for name, default in SHIFTS.items()}
    return DynamicShift(**numbers, time_shift_type=config.get("time_shift_type", "exponential"))


def static_shift(scheduler: Any) -> float:
    """The shift in a scheduler's configuration, the same at all sizes."""
    config = scheduler.config
    return float(config.get("shift", config.get("flow_shift", 1.0)))


def with_shift(scheduler: Any, shift: float) -> Any:
    """A scheduler like ``scheduler`` that has this shift at all sizes."""
    config = {name: value for name, value in scheduler.config.items() if name not in ("shift", "flow_shift")}
    return type(scheduler).from_config({**config, "use_dynamic_shifting": False, "shift": shift})


def set_shift(pipe: Any, shift: float | None, by_size: bool, side: int) -> SizeShift | None:
    """Lets ``pipe`` draw pictures of ``side`` pixels at the shift that is trained at.

    Args:
        shift: None for the scheduler's own.
        by_size: it is the shift of a picture of the model's own size.

    Returns:
        what shifts by size in training; None if pictures of all sizes are shifted as the scheduler says.
    """
    if shift is not None or by_size:
        pipe.scheduler = with_shift(pipe.scheduler, shift or static_shift(pipe.scheduler))
    if not by_size:
        return dynamic_shift(pipe.scheduler)
    patch, own = pipe.transformer.config.patch_size, pipe.transformer.config.sample_size
    of_size = SquareRootShift(static_shift(pipe.scheduler), (own // patch) ** 2)
    pipe.scheduler = with_shift(pipe.scheduler, of_size((side // pipe.vae_scale_factor // patch) ** 2))
    return of_size
