"""Sampling with fewer full evaluations of the transformer: neighbouring steps ask it nearly the same.

A cache stands between the loop and the velocity model (``pipe.enable_cache(...)``) and answers some calls itself. Each
guidance query has memories of its own, and each call of the pipeline starts without any. ``evaluations`` and ``calls``
say what the last call of the pipeline saved.
"""

import copy
import dataclasses
import math
from typing import Annotated, Any

import paddle

from ...ops.shapes import cast
from ...utils.checking import Range, checks_arguments
from .denoising import Velocity, VelocityModel
from .guidance import Query


@dataclasses.dataclass
class Asked:
    """One call of the velocity that a cache is asked to answer.

    ``whole`` asks for a full evaluation; ``memory`` is what the cache keeps of this guidance query.
    """

    velocity: VelocityModel
    latents: paddle.Tensor
    step: int
    query: Query
    whole: bool
    memory: dict[str, Any]


class StepCache:
    """Base of the caches: a subclass's :meth:`answer` gives the velocity of one call.

    Args:
        warmup: first steps that are always evaluated: they decide what the picture shows.

    Attributes:
        calls, evaluations: of the velocity, and of the whole transformer, in the pipeline's last or present call.
    """

    @checks_arguments
    def __init__(self, warmup: Annotated[int, Range(0)]):
        self.warmup = warmup
        self._counts = [0, 0]

    @property
    def calls(self) -> int:
        return self._counts[0]

    @property
    def evaluations(self) -> int:
        return self._counts[1]

    def start(self, velocity: VelocityModel) -> Velocity:
        """The callable that takes the place of ``velocity`` for one call of the pipeline."""
        own = copy.copy(self)
        own._counts = self._counts = counts = [0, 0]  # this call's: one in another thread counts for itself
        memories: list[tuple[Query, dict[str, Any]]] = []  # what the subclass keeps of the queries in use

        def cached(latents, step, query):
            counts[0] += 1
            last = step == len(velocity.timesteps) - 1
            memory = next((memory for known, memory in memories if known.asks_like(query)), None)
            if memory is None:
                memory = {}
                memories.append((query, memory))
                del memories[:-4]  # a callback that replaces the condition leaves its memories behind
            return own.answer(Asked(velocity, latents, step, query, step < own.warmup or last, memory))

        return cached

    def answer(self, asked: Asked) -> paddle.Tensor:
        """The velocity that is asked for."""
        raise NotImplementedError

    def evaluate(self, asked: Asked) -> paddle.Tensor:
        """The velocity by a full evaluation, counted."""
        self._counts[1] += 1
        return asked.velocity(asked.latents, asked.step, asked.query)


class TaylorCache(StepCache):
    """Evaluates every ``interval``-th step after the warm-up and continues the velocity between by a polynomial in time
    through the last evaluations (as TaylorSeer, Liu et al., 2025, does with features).

    Args:
        interval: 1 evaluates all steps.
        order: of the polynomial: 0 repeats the last velocity, 1 is a straight line.
        warmup: as in :class:`StepCache`.
    """

    @checks_arguments
    def __init__(self, interval: Annotated[int, Range(1)] = 2, order: Annotated[int, Range(0)] = 1, warmup: int = 6):
        super().__init__(warmup)
        self.interval, self.order = interval, order

    def answer(self, asked: Asked) -> paddle.Tensor:
        known = asked.memory.setdefault("known", [])  # (time, velocity), the newest last
        now = float(asked.velocity.timesteps[asked.step])
        due = (asked.step - self.warmup) % self.interval == self.interval - 1
        if asked.whole or due or not known:
            result = self.evaluate(asked)
            # of two evaluations at one time, Heun's correction and the step after it, the newer is the nearer
            known[:] = [*(pair for pair in known if pair[0] != now), (now, result)][-self.order - 1 :]
            return result
        # Lagrange's form: weights are numbers, so one pass over the velocities does
        weights = []
        for i, (time, _) in enumerate(known):
            weight = 1.0
            for j, (other, _) in enumerate(known):
                if i != j:
                    weight *= (now - other) / (time - other)
            weights.append(weight)
        total: Any = sum(weight * cast(value, paddle.float32) for weight, (_, value) in zip(weights, known))
        return total


class _ThresholdCache(StepCache):
    """A cache that evaluates when a measured change reaches ``threshold``."""

    @checks_arguments
    def __init__(self, threshold: Annotated[float, Range(0, math.inf)] = 0.1, warmup: int = 6):
        super().__init__(warmup)
        self.threshold = threshold


class EasyCache(_ThresholdCache):
    """Repeats the last difference of velocity and latents as long as the change that must have built up is small
    (Zhou et al., 2025, "EasyCache"): how strongly the velocity answers to the latents is measured at evaluations.

    Args:
        threshold: of the accumulated relative change; 0 evaluates all steps.
        warmup: as in :class:`StepCache`.
    """

    def answer(self, asked: Asked) -> paddle.Tensor:
        # differences in float32, whatever the network's dtype
        latents, memory = cast(asked.latents, paddle.float32), asked.memory
        before, memory["latents"] = memory.get("latents", latents), latents
        if not asked.whole and "rise" in memory:
            moved, since, rise, size = _read(_mean(latents - before), memory["since"], memory["rise"], memory["size"])
            memory["change"] += rise / max(since, 1e-12) * moved / max(size, 1e-12)
            if memory["change"] < self.threshold:
                return memory["difference"] + _copies(latents, memory["difference"])
        result = cast(self.evaluate(asked), paddle.float32)
        if "result" in memory:
            memory["since"] = _mean(latents - memory["evaluated at"])
            memory["rise"] = _mean(result - memory["result"])
        memory.update({"result": result, "evaluated at": latents, "size": _mean(result), "change": 0.0})
        memory["difference"] = result - _copies(latents, result)
        return result


class FirstBlockCache(_ThresholdCache):
    """Runs the first block; if it changed little since the last full evaluation, the other blocks' part is repeated
    (first-block caching, as in ParaAttention).

    Args:
        threshold: of the first block's relative change; 0 evaluates all steps.
        warmup: as in :class:`StepCache`.
    """

    def answer(self, asked: Asked) -> paddle.Tensor:
        memory = asked.memory

        def run(blocks, hidden_states, context):
            context, after = blocks[0](hidden_states, context)
            first = after - hidden_states
            if not asked.whole and "rest" in memory:
                change, size = _read(_mean(first - memory["first"]), memory["size"])
                if change / max(size, 1e-12) < self.threshold:
                    return after + memory["rest"]
            self._counts[1] += 1
            result = after
            for block in blocks[1:]:
                context, result = block(result, context)
            memory.update({"first": first, "size": _mean(first), "rest": result - after})
            return result

        return asked.velocity(asked.latents, asked.step, asked.query, run_blocks=run)


def _mean(tensor):
    """Mean magnitude, where the tensor is: [] fp32."""
    return tensor.astype("float32").abs().mean()


def _read(*numbers):
    """Tensors of one number as floats, in one read of the device."""
    return map(float, paddle.stack(numbers).numpy())


def _copies(latents, result):
    """``latents`` as often on the batch axis as ``result`` has them."""
    copies = result.shape[0] // latents.shape[0]
    return paddle.concat([latents] * copies) if copies > 1 else latents
