"""Guidance: which conditions the transformer is asked about at a step, and how its answers become one velocity.

Every guidance has the same members, so the denoising loop asks no questions:

- ``copies``: rows of the batched condition per row of latents.
- ``expand(positive, negative)``: the batched condition, once per picture. Its order, **[negative, positive]**, is
  decided here and nowhere else; diffusers uses the same, so callbacks see the same tensors.
- ``queries(condition, step, num_steps)``: the model calls of one step.
- ``combine(predictions)``: their answers [copies * B, C, H, W] -> velocity [B, C, H, W].
- ``fit(condition, batch)``: a condition that someone else changed, in the form that ``queries`` takes.
"""

import dataclasses
from typing import Optional, Sequence

from ...utils.errors import InputError
from .prompt_encoding import TextCondition


@dataclasses.dataclass
class Query:
    """One call of the transformer: about each row of latents, once for every multiple of B rows in ``condition``."""

    condition: TextCondition
    skip_layers: Optional[Sequence[int]] = None


class NoGuidance:
    """The model's own velocity: ``guidance_scale <= 1``."""

    copies = 1

    def fit(self, condition, batch):
        # Guidance that a callback has switched off leaves both halves behind.
        return condition.half(1) if condition.embeds.shape[0] == 2 * batch else condition

    def expand(self, positive, negative=None):
        return positive

    def queries(self, condition, step, num_steps):
        return [Query(condition)]

    def combine(self, predictions):
        return predictions[0]


class ClassifierFreeGuidance:
    """``u + scale * (c - u)`` with u for the negative and c for the positive prompt (Ho & Salimans, 2022)."""

    copies = 2

    def __init__(self, scale):
        self.scale = scale

    def fit(self, condition, batch):
        rows = condition.embeds.shape[0]
        if rows != self.copies * batch:
            raise InputError(
                f"A callback left a condition of {rows} rows for guidance {self.scale} over {batch} pictures, which "
                f"needs {self.copies * batch}: [negative, positive]. Keep both halves, or set the scale to 1."
            )
        return condition

    def expand(self, positive, negative):
        return TextCondition.cat([negative, positive])

    def queries(self, condition, step, num_steps):
        return [Query(condition)]

    def combine(self, predictions):
        negative, positive = predictions[0].chunk(2)
        return negative + self.scale * (positive - negative)


class SkipLayerGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance that also steers away from what the model draws without some of its layers.

    Adds ``skip_scale * (c - s)`` with s the positive velocity when ``layers`` are skipped, at the steps i with
    ``num_steps * start < i < num_steps * stop``. For SD3.5-medium Stability AI recommends layers 7, 8, 9.
    """

    def __init__(self, scale, layers, skip_scale=2.8, start=0.01, stop=0.2):
        super().__init__(scale)
        self.layers, self.skip_scale, self.start, self.stop = list(layers), skip_scale, start, stop
        self._positive = None, None  # a condition and its positive half, which stays the same object from step to step

    def queries(self, condition, step, num_steps):
        queries = super().queries(condition, step, num_steps)
        if num_steps * self.start < step < num_steps * self.stop:
            if self._positive[0] is not condition:
                self._positive = condition, condition.half(1)
            queries.append(Query(self._positive[1], skip_layers=self.layers))
        return queries

    def combine(self, predictions):
        guided = super().combine(predictions)
        if len(predictions) == 1:
            return guided
        _, positive = predictions[0].chunk(2)
        return guided + (positive - predictions[1]) * self.skip_scale


def make_guidance(scale, skip_layers=None, skip_scale=2.8, skip_start=0.01, skip_stop=0.2):
    """The guidance that a pipeline call's arguments ask for. A scale of 1 or less means none."""
    if scale <= 1:
        return NoGuidance()
    if skip_layers is None:
        return ClassifierFreeGuidance(scale)
    return SkipLayerGuidance(scale, skip_layers, skip_scale, skip_start, skip_stop)
