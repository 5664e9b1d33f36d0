"""Guidance: which conditions the transformer is asked about at a step, and how its answers become one velocity.

:class:`Guidance` declares the members that the denoising loop uses. Two kinds build on it. How the negative and the
positive velocity are weighed is a ``ClassifierFreeGuidance`` or a subclass with another ``weigh``. Everything else
wraps a guidance: ``SkipLayerGuidance``, ``PerturbedAttentionGuidance``, ``GuidanceInterval`` and ``GuidanceRescale``
take one as their first argument, a number standing for the ``ClassifierFreeGuidance`` of that scale (1 or less: none).

A call does not change a guidance, so several calls may share one. What a guidance has to remember from step to step is
in ``moment.memory_of(self)``, which belongs to the call.
"""

import abc
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Callable, Optional, Union

import paddle

from ...models import SD3Transformer2DModel
from ...models.attention_processor import perturbed
from ...utils.checking import Range, checks_arguments
from ...utils.errors import InputError
from .prompt_encoding import TextCondition


@dataclasses.dataclass
class Moment:
    """Where a call is: ``step`` of ``num_steps``, and its ``timestep``, 1000 to 0.

    ``memory`` is the call's; in a moment without one, made outside of a call, a guidance remembers by itself until the
    next step 0.
    """

    step: int
    num_steps: int
    timestep: Union[paddle.Tensor, float]
    memory: Optional[dict[int, dict[str, Any]]] = None

    def within(self, start: float, stop: float) -> bool:
        """Whether the step is in the part from ``start`` to ``stop`` of a call, as diffusers' guiders count."""
        return int(start * self.num_steps) <= self.step < int(stop * self.num_steps)

    def memory_of(self, owner: object) -> dict[str, Any]:
        """What ``owner`` remembers from step to step of this call."""
        if self.memory is not None:
            return self.memory.setdefault(id(owner), {})
        if self.step == 0:
            vars(owner).pop("_memory", None)
        return vars(owner).setdefault("_memory", {})


@dataclasses.dataclass
class Query:
    """One call of the transformer: about each row of latents, once for every multiple of B rows in ``condition``.

    ``skip_layers`` are left out; in ``perturbed_layers`` no image token sees another
    (:func:`perturbed_processors`).
    """

    condition: TextCondition
    skip_layers: Optional[Sequence[int]] = None
    perturbed_layers: tuple[Union[int, str], ...] = ()

    def asks_like(self, other: "Query") -> bool:
        """Whether the two differ in the latents alone."""
        same = self.condition is other.condition
        return same and (self.skip_layers, self.perturbed_layers) == (other.skip_layers, other.perturbed_layers)


Part = Annotated[float, Range(0, 1)]  # of the steps
Scale = Annotated[float, Range(-10_000, 10_000)]  # beyond, float32 overflows somewhere in the loop
Predictions = list[paddle.Tensor]  # one float32 [copies * B, C, H, W] for each query of a step


class Guidance(abc.ABC):
    """What the denoising loop asks of a guidance.

    Attributes:
        copies: rows of the batched condition per row of latents: 1, or 2 with a negative prompt.
        scale: weight of the classifier-free guidance, 1 where there is none.
    """

    copies: int = 1
    scale: float = 1.0

    def check(self, transformer: SD3Transformer2DModel) -> None:  # noqa: B027 (most can guide any)
        """Refuses a transformer that it cannot guide.

        Raises:
            InputError: names what the transformer lacks.
        """

    @abc.abstractmethod
    def expand(self, positive: TextCondition, negative: Optional[TextCondition]) -> TextCondition:
        """The batched condition, made once per call. Its order, **[negative, positive]**, is decided here and nowhere
        else; diffusers uses the same, so callbacks see the same tensors."""

    @abc.abstractmethod
    def fit(self, condition: TextCondition, batch: int) -> TextCondition:
        """A condition that a callback may have changed, as :meth:`queries` takes it, for B = ``batch`` pictures."""

    @abc.abstractmethod
    def queries(self, condition: TextCondition, moment: Moment) -> list[Query]:
        """The calls of the transformer at one step."""

    @abc.abstractmethod
    def combine(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
        """The velocity [B, C, H, W] from the answers to :meth:`queries`."""

    # What guidances that wrap this one ask beside that:

    @abc.abstractmethod
    def positive(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
        """The velocity [B, C, H, W] for the positive prompt, out of the answers to :meth:`queries`."""

    @abc.abstractmethod
    def positive_condition(self, condition: TextCondition) -> TextCondition:
        """The rows of ``condition`` for the positive prompt; the same object at each call."""


class NoGuidance(Guidance):
    """The model's own velocity: ``guidance_scale <= 1``."""

    def fit(self, condition: TextCondition, batch: int) -> TextCondition:
        # Guidance that a callback has switched off leaves both halves behind.
        return condition.half(1) if condition.embeds.shape[0] == 2 * batch else condition

    def expand(self, positive: TextCondition, negative: Optional[TextCondition] = None) -> TextCondition:
        return positive

    def positive_condition(self, condition: TextCondition) -> TextCondition:
        return condition

    def queries(self, condition: TextCondition, moment: Moment) -> list[Query]:
        return [Query(condition)]

    def positive(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
        return predictions[0]

    def combine(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
        return predictions[0]


class ClassifierFreeGuidance(NoGuidance):
    """``u + scale * (c - u)`` with u for the negative and c for the positive prompt (Ho & Salimans, 2022).

    Args:
        scale: weight of the guidance.
    """

    copies = 2

    @checks_arguments
    def __init__(self, scale: Scale = 7.0):
        self.scale = scale

    def fit(self, condition: TextCondition, batch: int) -> TextCondition:
        rows = condition.embeds.shape[0]
        if rows != self.copies * batch:
            raise InputError(
                f"A callback left a condition of {rows} rows for guidance {self.scale} over {batch} pictures, which "
                f"needs {self.copies * batch}: [negative, positive]. Keep both halves, or set the scale to 1."
            )
        return condition

    def expand(self, positive: TextCondition, negative: Optional[TextCondition]) -> TextCondition:
        assert negative is not None  # as copies is 2
        return TextCondition.cat([negative, positive])

    def positive_condition(self, condition: TextCondition) -> TextCondition:
        return condition.half(1)

    def positive(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
        return predictions[0].chunk(2)[1]

    def combine(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
        negative, positive = predictions[0].chunk(2)
        return self.weigh(negative, positive, moment)

    def weigh(self, negative: paddle.Tensor, positive: paddle.Tensor, moment: Moment) -> paddle.Tensor:
        """The velocity [B, C, H, W] from those of the two prompts; what subclasses replace."""
        return negative + self.scale * (positive - negative)


class ClassifierFreeZeroStarGuidance(ClassifierFreeGuidance):
    """CFG-Zero* (Fan et al., 2025): the negative velocity is first scaled to lie nearest to the positive one, and the
    first steps, where a model's velocity is worse than none, stand still.

    Args:
        scale: weight of the guidance.
        zero_init_steps: steps that stand still.
    """

    @checks_arguments
    def __init__(self, scale: Scale = 7.0, zero_init_steps: Annotated[int, Range(0)] = 1):
        super().__init__(scale)
        self.zero_init_steps = zero_init_steps

    def weigh(self, negative: paddle.Tensor, positive: paddle.Tensor, moment: Moment) -> paddle.Tensor:
        if moment.step < self.zero_init_steps:
            return positive * 0.0
        product, square = _row_sum(positive * negative), _row_sum(negative * negative)
        return super().weigh(negative * (product / (square + 1e-8)), positive, moment)


class AdaptiveProjectedGuidance(ClassifierFreeGuidance):
    """APG (Sadat et al., 2024): of the difference ``c - u`` the part along ``c``, which saturates colours, counts only
    ``eta``; its length is limited, and it keeps a memory of the steps before. High scales then stay natural.

    Args:
        scale: weight of the guidance.
        eta: weight of the part along the positive velocity: 1 is all of it, 0 none.
        norm_threshold: largest length of a picture's difference; 0 for no limit.
        momentum: weight of the steps before, usually negative, e.g. -0.5. Default: none.
    """

    @checks_arguments
    def __init__(
        self,
        scale: Scale = 7.0,
        eta: Scale = 1.0,
        norm_threshold: Annotated[float, Range(0)] = 15.0,
        momentum: Optional[Scale] = None,
    ):
        super().__init__(scale)
        self.eta, self.norm_threshold, self.momentum = eta, norm_threshold, momentum

    def weigh(self, negative: paddle.Tensor, positive: paddle.Tensor, moment: Moment) -> paddle.Tensor:
        difference = positive - negative
        if self.momentum is not None:
            memory = moment.memory_of(self)
            if "average" in memory:
                difference = difference + self.momentum * memory["average"]
            memory["average"] = difference
        if self.norm_threshold > 0:
            length = _row_sum(difference * difference).sqrt()
            difference = difference * (self.norm_threshold / length.clip(min=1e-12)).clip(max=1.0)
        square = _row_sum(positive * positive).clip(min=1e-24)
        along = _row_sum(difference * positive) / square * positive
        return negative + self.scale * (difference - along + self.eta * along)


class WrappedGuidance(Guidance):
    """A guidance that changes what another one, ``base``, asks or answers. Subclasses replace what they change.

    Args:
        base: a number is the scale of a ``ClassifierFreeGuidance``; 1 or less is none.
    """

    @checks_arguments
    def __init__(self, base: Union[Guidance, Scale]):
        self.base = make_guidance(base) if isinstance(base, (int, float)) else base

    @property
    def copies(self) -> int:  # type: ignore[override]
        return self.base.copies

    @property
    def scale(self) -> float:  # type: ignore[override]
        return self.base.scale

    def fit(self, condition: TextCondition, batch: int) -> TextCondition:
        return self.base.fit(condition, batch)

    def check(self, transformer: SD3Transformer2DModel) -> None:
        self.base.check(transformer)

    def expand(self, positive: TextCondition, negative: Optional[TextCondition] = None) -> TextCondition:
        return self.base.expand(positive, negative)

    def positive_condition(self, condition: TextCondition) -> TextCondition:
        return self.base.positive_condition(condition)

    def queries(self, condition: TextCondition, moment: Moment) -> list[Query]:
        return self.base.queries(condition, moment)

    def positive(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
        return self.base.positive(predictions, moment)

    def combine(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
        return self.base.combine(predictions, moment)


class GuidanceInterval(WrappedGuidance):
    """Guides only in the part of the steps from ``start`` to ``stop``; elsewhere the model is asked about the positive
    prompt alone, at half the work (Kynkäänniemi et al., 2024).

    Args:
        base: what guides.
        start, stop: parts of the steps, 0 to 1.
    """

    @checks_arguments
    def __init__(self, base: Union[Guidance, Scale] = 7.0, start: Part = 0.0, stop: Part = 1.0):
        super().__init__(base)
        if start > stop:
            raise InputError(f"A guidance interval from {start} to {stop} is none; 0 <= start <= stop <= 1.")
        self.start, self.stop = start, stop

    def queries(self, condition: TextCondition, moment: Moment) -> list[Query]:
        if moment.within(self.start, self.stop):
            return self.base.queries(condition, moment)
        return [Query(self.base.positive_condition(condition))]

    def positive(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
        inside = moment.within(self.start, self.stop)
        return self.base.positive(predictions, moment) if inside else predictions[0]

    def combine(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
        inside = moment.within(self.start, self.stop)
        return self.base.combine(predictions, moment) if inside else predictions[0]


class GuidanceRescale(WrappedGuidance):
    """Takes the guided velocity back to the spread that the positive one has (Lin et al., 2024, section 3.4).

    Args:
        base: what guides.
        factor: 1 takes it all the way, 0 leaves it.
    """

    @checks_arguments
    def __init__(self, base: Union[Guidance, Scale] = 7.0, factor: Scale = 0.7):
        super().__init__(base)
        self.factor = factor

    def combine(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
        guided, positive = self.base.combine(predictions, moment), self.base.positive(predictions, moment)
        ratio = _deviation(positive) / _deviation(guided).clip(min=1e-12)  # 0 where a guidance stands still
        return guided * (self.factor * ratio + (1 - self.factor))


class WeakenedModelGuidance(WrappedGuidance):
    """Also steers away from what a weakened model draws: adds ``weight * (c - w)`` with w its positive velocity.

    A subclass says how the model is weakened (``weakened``), when (``acts``) and how much it counts (``weight``).
    """

    @abc.abstractmethod
    def acts(self, moment: Moment) -> bool:
        """Whether the weakened model is asked at this step."""

    @abc.abstractmethod
    def weakened(self, condition: TextCondition) -> Query:
        """The call of the weakened model."""

    @abc.abstractmethod
    def weight(self, moment: Moment) -> float:
        """How much the difference counts."""

    def queries(self, condition: TextCondition, moment: Moment) -> list[Query]:
        queries = self.base.queries(condition, moment)
        if self.acts(moment):
            queries = [*queries, self.weakened(self.positive_condition(condition))]
        return queries

    def positive(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
        return self.base.positive(self._of_base(predictions, moment), moment)

    def combine(self, predictions: Predictions, moment: Moment) -> paddle.Tensor:
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
        base: what it adds to.
        layers: blocks to leave out.
        skip_scale: its weight.
        start, stop: it acts at the steps i with ``num_steps * start < i < num_steps * stop``.
    """

    @checks_arguments
    def __init__(
        self,
        base: Union[Guidance, Scale],
        layers: Annotated[Sequence[int], Range(0)],
        skip_scale: Scale = 2.8,
        start: float = 0.01,
        stop: float = 0.2,
    ):
        super().__init__(base)
        self.layers, self.skip_scale, self.start, self.stop = list(layers), skip_scale, start, stop

    def acts(self, moment: Moment) -> bool:
        return moment.num_steps * self.start < moment.step < moment.num_steps * self.stop

    def weakened(self, condition: TextCondition) -> Query:
        return Query(condition, skip_layers=self.layers)

    def weight(self, moment: Moment) -> float:
        return self.skip_scale


class PerturbedAttentionGuidance(WeakenedModelGuidance):
    """PAG (Ahn et al., 2024): in some layers of the weakened model no image token sees another.

    Args:
        base: what it adds to; 1 for none, since it works without a negative prompt too.
        layers: blocks (one or several), as numbers or in diffusers' way of naming them (``"blocks.1"``,
            ``"blocks.(1|2)"``).
        pag_scale: its weight.
        pag_adaptive_scale: weight lost for each unit of ``1000 - timestep``.
        start, stop: parts of the steps in which it acts.
    """

    @checks_arguments
    def __init__(
        self,
        base: Union[Guidance, Scale] = 7.0,
        layers: Union[int, str, Sequence[Union[int, str]]] = (1,),
        pag_scale: Scale = 3.0,
        pag_adaptive_scale: Scale = 0.0,
        start: Part = 0.0,
        stop: Part = 1.0,
    ):
        super().__init__(base)
        self.layers = [layers] if isinstance(layers, (int, str)) else list(layers)
        self.pag_scale, self.pag_adaptive_scale, self.start, self.stop = pag_scale, pag_adaptive_scale, start, stop

    def check(self, transformer: SD3Transformer2DModel) -> None:
        super().check(transformer)
        perturbed_processors(transformer, self.layers)

    def acts(self, moment: Moment) -> bool:
        return self.weight(moment) > 0 and moment.within(self.start, self.stop)

    def weakened(self, condition: TextCondition) -> Query:
        return Query(condition, perturbed_layers=tuple(self.layers))

    def weight(self, moment: Moment) -> float:
        return max(0.0, self.pag_scale - self.pag_adaptive_scale * (1000 - float(moment.timestep)))


def make_guidance(
    scale: float,
    skip_layers: Optional[Sequence[int]] = None,
    skip_scale: Scale = 2.8,
    skip_start: float = 0.01,
    skip_stop: float = 0.2,
) -> Guidance:
    """The guidance that a pipeline call's arguments ask for. A scale of 1 or less means none."""
    if scale <= 1:
        return NoGuidance()
    if skip_layers is None:
        return ClassifierFreeGuidance(scale)
    return SkipLayerGuidance(scale, skip_layers, skip_scale, skip_start, skip_stop)


def perturbed_processors(
    transformer: SD3Transformer2DModel, layers: Sequence[Union[int, str]]
) -> dict[str, Callable[..., Any]]:
    """The attention processors that stand in for the transformer's own where no image token may see another.

    Args:
        layers: blocks, as :class:`PerturbedAttentionGuidance` names them.

    Returns:
        name, as in ``transformer.attn_processors`` -> processor, for the attentions of these blocks.

    Raises:
        InputError: a layer that the transformer does not have.
    """
    own = transformer.attn_processors
    found = {layer: [name for name in own if _is_in(name, layer)] for layer in layers}
    missing = [layer for layer, its in found.items() if not its]
    if missing:
        depth = len(transformer.transformer_blocks)
        raise InputError(
            f"Perturbed-attention guidance names the layers {missing}, which this transformer does not have; its "
            f"blocks are 0 to {depth - 1}, or 'blocks.0' to 'blocks.{depth - 1}'."
        )
    return {name: perturbed(own[name]) for its in found.values() for name in its}


def _row_sum(x):
    """Sum over all axes but the first, which stay: [B, 1, 1, 1]."""
    return x.sum(axis=list(range(1, x.ndim)), keepdim=True)


def _deviation(x):
    """``x.std`` of each row to the last bit, [B, 1, 1, 1]; Paddle's reads the device to see whether it can divide."""
    deviations = x - x.mean(axis=list(range(1, x.ndim)), keepdim=True)
    return paddle.sqrt(_row_sum(paddle.pow(deviations, 2)) / paddle.full([], math.prod(x.shape[1:]) - 1, x.dtype))


def _is_in(name, layer):
    """Whether an attention, e.g. ``transformer_blocks.1.attn.processor``, is in ``layer`` (a number or expression)."""
    pattern = f"blocks.{layer}" if isinstance(layer, int) else layer
    return re.search(rf"(?:{pattern})(?!\d)", name) is not None
