"""Guidance: which conditions the transformer is asked about at a step, and how its answers become one velocity.

Every guidance has the same members, so the denoising loop asks no questions:

- ``copies``: rows of the batched condition per row of latents.
- ``expand(positive, negative)``: the batched condition, once per picture. Its order, **[negative, positive]**, is
  decided here and nowhere else; diffusers uses the same, so callbacks see the same tensors.
- ``queries(condition, moment)``: the model calls of one step.
- ``combine(predictions, moment)``: their answers [copies * B, C, H, W] -> velocity [B, C, H, W].
- ``positive(predictions, moment)``: of those answers the one about the positive prompt.
- ``fit(condition, batch)``: a condition that someone else changed, in the form that ``queries`` takes.
- ``check(transformer)``: refuses a model that it cannot guide.

Two kinds build on one another. How negative and positive are weighed is a ``ClassifierFreeGuidance`` or a subclass with
another ``weigh``. What else happens wraps any guidance: ``SkipLayerGuidance``, ``PerturbedAttentionGuidance``,
``GuidanceInterval`` and ``GuidanceRescale`` take one as their first argument, a number standing for the
``ClassifierFreeGuidance`` of that scale (1 or less: none).
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Optional

from ...models.attention_processor import perturbed
from ...utils.errors import InputError
from .prompt_encoding import TextCondition


@dataclasses.dataclass
class Moment:
    """Where a run is: ``step`` of ``num_steps``, and its ``timestep`` (float tensor, 1000 to 0)."""

    step: int
    num_steps: int
    timestep: Any

    def within(self, start, stop):
        """Whether the step is in the part from ``start`` to ``stop`` of a run, as diffusers' guiders count."""
        return int(start * self.num_steps) <= self.step < int(stop * self.num_steps)


@dataclasses.dataclass
class Query:
    """One call of the transformer: about each row of latents, once for every multiple of B rows in ``condition``.

    ``skip_layers`` are left out; ``attention`` names processors that replace the model's own for this call.
    """

    condition: TextCondition
    skip_layers: Optional[Sequence[int]] = None
    attention: dict = dataclasses.field(default_factory=dict)

    def asks_like(self, other):
        """Whether the two differ in the latents alone."""
        same = self.condition is other.condition
        return same and (self.skip_layers, self.attention) == (other.skip_layers, other.attention)


class NoGuidance:
    """The model's own velocity: ``guidance_scale <= 1``."""

    copies = 1
    scale = 1.0

    def fit(self, condition, batch):
        # Guidance that a callback has switched off leaves both halves behind.
        return condition.half(1) if condition.embeds.shape[0] == 2 * batch else condition

    def check(self, transformer):
        pass

    def expand(self, positive, negative=None):
        return positive

    def positive_condition(self, condition):
        """The rows of ``condition`` that are about the positive prompt; the same object at each call."""
        return condition

    def queries(self, condition, moment):
        return [Query(condition)]

    def positive(self, predictions, moment):
        return predictions[0]

    def combine(self, predictions, moment):
        return predictions[0]


class ClassifierFreeGuidance(NoGuidance):
    """``u + scale * (c - u)`` with u for the negative and c for the positive prompt (Ho & Salimans, 2022).

    Args:
        scale (float): weight of the guidance.
    """

    copies = 2

    def __init__(self, scale=7.0):
        self.scale = scale
        self._half = None, None  # a condition and its positive half, which stays the same object from step to step

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

    def positive_condition(self, condition):
        if self._half[0] is not condition:
            self._half = condition, condition.half(1)
        return self._half[1]

    def positive(self, predictions, moment):
        return predictions[0].chunk(2)[1]

    def combine(self, predictions, moment):
        return self.weigh(*predictions[0].chunk(2), moment)

    def weigh(self, negative, positive, moment):
        """The velocity [B, C, H, W] from those of the two prompts; what subclasses replace."""
        return negative + self.scale * (positive - negative)


class ClassifierFreeZeroStarGuidance(ClassifierFreeGuidance):
    """CFG-Zero* (Fan et al., 2025): the negative velocity is first scaled to lie nearest to the positive one, and the
    first steps, where a model's velocity is worse than none, stand still.

    Args:
        scale (float): weight of the guidance.
        zero_init_steps (int): steps that stand still. Default 1.
    """

    def __init__(self, scale=7.0, zero_init_steps=1):
        super().__init__(scale)
        self.zero_init_steps = zero_init_steps

    def weigh(self, negative, positive, moment):
        if moment.step < self.zero_init_steps:
            return positive * 0.0
        product, square = _row_sum(positive * negative), _row_sum(negative * negative)
        return super().weigh(negative * (product / (square + 1e-8)), positive, moment)


class AdaptiveProjectedGuidance(ClassifierFreeGuidance):
    """APG (Sadat et al., 2024): of the difference ``c - u`` the part along ``c``, which saturates colours, counts only
    ``eta``; its length is limited, and it keeps a memory of the steps before. High scales then stay natural.

    Args:
        scale (float): weight of the guidance.
        eta (float): weight of the part along the positive velocity. 1 (default) is all of it, 0 none.
        norm_threshold (float): largest length of a picture's difference; 0 for no limit. Default 15.
        momentum (float, optional): weight of the steps before, usually negative, e.g. -0.5. Default: none.
    """

    def __init__(self, scale=7.0, eta=1.0, norm_threshold=15.0, momentum=None):
        super().__init__(scale)
        self.eta, self.norm_threshold, self.momentum = eta, norm_threshold, momentum
        self._average = None

    def weigh(self, negative, positive, moment):
        difference = positive - negative
        if self.momentum is not None:
            if moment.step > 0 and self._average is not None:
                difference = difference + self.momentum * self._average
            self._average = difference
        if self.norm_threshold > 0:
            length = _row_sum(difference * difference).sqrt()
            difference = difference * (self.norm_threshold / length.clip(min=1e-12)).clip(max=1.0)
        square = _row_sum(positive * positive).clip(min=1e-24)
        along = _row_sum(difference * positive) / square * positive
        return negative + self.scale * (difference - along + self.eta * along)


class WrappedGuidance:
    """A guidance that changes what another one, ``base``, asks or answers. Subclasses replace what they change.

    Args:
        base (guidance or float): a number is the scale of a ``ClassifierFreeGuidance``; 1 or less is none.
    """

    def __init__(self, base):
        self.base = make_guidance(base) if isinstance(base, (int, float)) else base

    copies = property(lambda self: self.base.copies)
    scale = property(lambda self: self.base.scale)

    def fit(self, condition, batch):
        return self.base.fit(condition, batch)

    def check(self, transformer):
        self.base.check(transformer)

    def expand(self, positive, negative=None):
        return self.base.expand(positive, negative)

    def positive_condition(self, condition):
        return self.base.positive_condition(condition)

    def queries(self, condition, moment):
        return self.base.queries(condition, moment)

    def positive(self, predictions, moment):
        return self.base.positive(predictions, moment)

    def combine(self, predictions, moment):
        return self.base.combine(predictions, moment)


class GuidanceInterval(WrappedGuidance):
    """Guides only in the part of the steps from ``start`` to ``stop``; elsewhere the model is asked about the positive
    prompt alone, at half the work (Kynkäänniemi et al., 2024).

    Args:
        base (guidance or float): what guides.
        start, stop (float): parts of the steps, 0 to 1.
    """

    def __init__(self, base=7.0, start=0.0, stop=1.0):
        super().__init__(base)
        if not 0 <= start <= stop <= 1:
            raise InputError(f"A guidance interval from {start} to {stop} is none; 0 <= start <= stop <= 1.")
        self.start, self.stop = start, stop

    def queries(self, condition, moment):
        if moment.within(self.start, self.stop):
            return self.base.queries(condition, moment)
        return [Query(self.base.positive_condition(condition))]

    def positive(self, predictions, moment):
        inside = moment.within(self.start, self.stop)
        return self.base.positive(predictions, moment) if inside else predictions[0]

    def combine(self, predictions, moment):
        inside = moment.within(self.start, self.stop)
        return self.base.combine(predictions, moment) if inside else predictions[0]


class GuidanceRescale(WrappedGuidance):
    """Takes the guided velocity back to the spread that the positive one has (Lin et al., 2024, section 3.4).

    Args:
        base (guidance or float): what guides.
        factor (float): 1 takes it all the way, 0 leaves it. Default 0.7.
    """

    def __init__(self, base=7.0, factor=0.7):
        super().__init__(base)
        self.factor = factor

    def combine(self, predictions, moment):
        guided, positive = self.base.combine(predictions, moment), self.base.positive(predictions, moment)
        axes = list(range(1, guided.ndim))
        spread = guided.std(axis=axes, keepdim=True).clip(min=1e-12)  # 0 where a guidance stands still
        ratio = positive.std(axis=axes, keepdim=True) / spread
        return guided * (self.factor * ratio + (1 - self.factor))


class WeakenedModelGuidance(WrappedGuidance):
    """Also steers away from what a weakened model draws: adds ``weight * (c - w)`` with w its positive velocity.

    A subclass says how the model is weakened (``weakened``), when (``acts``) and how much it counts (``weight``).
    """

    def queries(self, condition, moment):
        queries = self.base.queries(condition, moment)
        if self.acts(moment):
            queries = [*queries, self.weakened(self.positive_condition(condition))]
        return queries

    def positive(self, predictions, moment):
        return self.base.positive(self._of_base(predictions, moment), moment)

    def combine(self, predictions, moment):
        of_base = self._of_base(predictions, moment)
        guided = self.base.combine(of_base, moment)
        if not self.acts(moment):
            return guided
        return guided + (self.base.positive(of_base, moment) - predictions[-1]) * self.weight(moment)

    def _of_base(self, predictions, moment):
        return predictions[:-1] if self.acts(moment) else predictions


class SkipLayerGuidance(WeakenedModelGuidance):
    """The weakened model lacks some of its layers. For SD3.5-medium Stability AI recommends layers 7, 8, 9.

    Args:
        base (guidance or float): what it adds to.
        layers (sequence of int): blocks to leave out.
        skip_scale (float): its weight. Default 2.8.
        start, stop (float): it acts at the steps i with ``num_steps * start < i < num_steps * stop``.
    """

    def __init__(self, base, layers, skip_scale=2.8, start=0.01, stop=0.2):
        super().__init__(base)
        self.layers, self.skip_scale, self.start, self.stop = list(layers), skip_scale, start, stop

    def acts(self, moment):
        return moment.num_steps * self.start < moment.step < moment.num_steps * self.stop

    def weakened(self, condition):
        return Query(condition, skip_layers=self.layers)

    def weight(self, moment):
        return self.skip_scale


class PerturbedAttentionGuidance(WeakenedModelGuidance):
    """PAG (Ahn et al., 2024): in some layers of the weakened model no image token sees another.

    Args:
        base (guidance or float): what it adds to; 1 for none, since it works without a negative prompt too.
        layers (sequence of int or str, or one): blocks, as numbers or in diffusers' way of naming them
            (``"blocks.1"``, ``"blocks.(1|2)"``). Default: block 1.
        pag_scale (float): its weight. Default 3.
        pag_adaptive_scale (float): weight lost for each unit of ``1000 - timestep``. Default 0.
        start, stop (float): parts of the steps in which it acts. Default: all.
    """

    def __init__(self, base=7.0, layers=(1,), pag_scale=3.0, pag_adaptive_scale=0.0, start=0.0, stop=1.0):
        super().__init__(base)
        self.layers = [layers] if isinstance(layers, (int, str)) else list(layers)
        self.pag_scale, self.pag_adaptive_scale, self.start, self.stop = pag_scale, pag_adaptive_scale, start, stop
        self._processors = {}

    def check(self, transformer):
        super().check(transformer)
        own = transformer.attn_processors
        found = {layer: [name for name in own if _is_in(name, layer)] for layer in self.layers}
        missing = [layer for layer, its in found.items() if not its]
        if missing:
            depth = len(transformer.transformer_blocks)
            raise InputError(
                f"Perturbed-attention guidance names the layers {missing}, which this transformer does not have; its "
                f"blocks are 0 to {depth - 1}, or 'blocks.0' to 'blocks.{depth - 1}'."
            )
        self._processors = {name: perturbed(own[name]) for its in found.values() for name in its}

    def acts(self, moment):
        return self.weight(moment) > 0 and moment.within(self.start, self.stop)

    def weakened(self, condition):
        return Query(condition, attention=self._processors)

    def weight(self, moment):
        return max(0.0, self.pag_scale - self.pag_adaptive_scale * (1000 - float(moment.timestep)))


def make_guidance(scale, skip_layers=None, skip_scale=2.8, skip_start=0.01, skip_stop=0.2):
    """The guidance that a pipeline call's arguments ask for. A scale of 1 or less means none."""
    if scale <= 1:
        return NoGuidance()
    if skip_layers is None:
        return ClassifierFreeGuidance(scale)
    return SkipLayerGuidance(scale, skip_layers, skip_scale, skip_start, skip_stop)


def _row_sum(x):
    """Sum over all axes but the first, which stay: [B, 1, 1, 1]."""
    return x.sum(axis=list(range(1, x.ndim)), keepdim=True)


def _is_in(name, layer):
    """Whether an attention, e.g. ``transformer_blocks.1.attn.processor``, is in ``layer`` (a number or expression)."""
    pattern = f"blocks.{layer}" if isinstance(layer, int) else layer
    return re.search(rf"(?:{pattern})(?!\d)", name) is not None
