"""Results of a bench, and figures derived from them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .benches import Bench
    from .sides.base import Side


@dataclasses.dataclass
class SideResult:
    """One side of a measurement.

    Attributes:
        seconds: of the timed runs, in the order of the rounds.
        peak: peak resident memory of its process in bytes.
        setup_seconds: time of loading.
        errors: output -> relative error to the reference.
        bar: largest error that counts as correct.
        absent, failure: why it was not measured: not installed, or an error.
    """

    name: str
    ours: bool
    int8: bool
    roofline: bool
    threads: int
    bar: float
    seconds: list[float] = dataclasses.field(default_factory=list)
    peak: int | None = None
    setup_seconds: float | None = None
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    is_reference: bool = False
    absent: str = ""
    failure: str = ""

    @classmethod
    def of(cls, side: Side) -> SideResult:
        """The empty result of ``side``."""
        bar = side.bench.bars[side.int8]
        return cls(side.name, side.ours, side.int8, side.roofline, side.threads, bar)

    @property
    def measured(self) -> bool:
        """Whether it ran to the end."""
        return bool(self.seconds) and not self.failure

    @property
    def error(self) -> float | None:
        """The largest of the errors, or None."""
        return max(self.errors.values(), default=None)

    @property
    def wrong(self) -> bool:
        """Whether its output differs from the reference, so that its time means nothing."""
        return self.error is not None and not self.error <= self.bar

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(Slowest - fastest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclasses.dataclass
class Measurement:
    """One bench with its sides.

    Attributes:
        settings: of the bench.
        flops: operations of one run, or None.
        gemm_flops: of one run of a roofline side, or None.
        image_tokens, width: of the transformer; for the fit over sizes.
    """

    bench: str
    title: str
    settings: dict[str, Any]
    image_tokens: int
    text_tokens: int
    width: int
    flops: float | None
    gemm_flops: int | None
    results: list[SideResult]

    @classmethod
    def of(cls, bench: Bench, results: list[SideResult]) -> Measurement:
        """The measurement of ``bench``."""
        from .configurations import width
        from .flops import gemm

        return cls(
            bench=bench.name,
            title=bench.title,
            settings=bench.settings(),
            image_tokens=bench.image_tokens,
            text_tokens=bench.text_tokens,
            width=width(bench.configuration["transformer"]),
            flops=bench.flops(),
            gemm_flops=None if bench.flops() is None else gemm(bench.gemms),
            results=results,
        )

    @property
    def sides(self) -> list[SideResult]:
        """Results of the sides proper."""
        return [result for result in self.results if not result.roofline]

    @property
    def rival(self) -> SideResult | None:
        """The fastest float32 rival that is correct and has all threads, or None."""
        rivals = [
            result
            for result in self.sides
            if result.measured and not (result.ours or result.int8 or result.wrong or self._fewer_threads(result))
        ]
        return min(rivals, key=lambda result: result.median, default=None)

    def _fewer_threads(self, result: SideResult) -> bool:
        return result.threads < self.settings["threads"]

    def ratio(self, result: SideResult) -> float | None:
        """Time over that of the fastest rival, the median of the rounds' ratios; or None."""
        rival = self.rival
        if rival is None or not result.measured:
            return None
        return statistics.median(a / b for a, b in zip(result.seconds, rival.seconds))

    def memory_ratio(self, result: SideResult) -> float | None:
        """Peak memory over the smallest of any correct float32 rival, or None."""
        peaks = [
            other.peak
            for other in self.sides
            if other.measured and other.peak and not (other.ours or other.int8 or other.wrong)
        ]
        return result.peak / min(peaks) if peaks and result.peak else None

    @property
    def roofline(self) -> float | None:
        """FLOP/s of float32 matrix products: of the fastest library by medians, or None."""
        flops = self.gemm_flops or 0
        rates = [flops / result.median for result in self.results if result.roofline and result.measured]
        return max(rates, default=None)

    def rate(self, result: SideResult) -> float | None:
        """FLOP/s, or None."""
        if not result.measured:
            return None
        work = self.gemm_flops if result.roofline else self.flops
        return work / result.median if work else None

    def share(self, result: SideResult) -> float | None:
        """Part of the roofline that a float32 side with all threads reaches, or None."""
        roofline, rate = self.roofline, self.rate(result)
        if result.int8 or self._fewer_threads(result) or roofline is None or rate is None:
            return None
        return rate / roofline

    def to_json(self) -> dict[str, Any]:
        """All times and derived figures, for JSON."""
        found = dataclasses.asdict(self)
        found["roofline_flops_per_second"] = self.roofline
        found["fastest_rival"] = self.rival.name if self.rival else None
        for entry, result in zip(found["results"], self.results):
            if result.measured:
                entry.update(median=result.median, spread=result.spread, wrong=result.wrong)
                entry.update(
                    ratio=None if result.roofline else self.ratio(result),
                    memory_ratio=None if result.roofline else self.memory_ratio(result),
                    share_of_roofline=self.share(result),
                )
        return found


@dataclasses.dataclass
class Scaling:
    """Growth of a side's time: ``seconds = a T D^2 + b T^2 D``, T all tokens and D the width.

    Attributes:
        tokens: image tokens, ascending; ``seconds`` beside them.
        linear, quadratic: a and b, not negative.
        predicted: seconds at the largest size by a fit to the others; more means a faster growth than this.
    """

    name: str
    tokens: list[int]
    seconds: list[float]
    text_tokens: int
    width: int
    linear: float
    quadratic: float
    predicted: float

    @property
    def growth(self) -> float:
        """Time at the largest size over :attr:`predicted`."""
        return self.seconds[-1] / self.predicted

    def at(self, image_tokens: float) -> float:
        """The fit's seconds."""
        return _cost(image_tokens + self.text_tokens, self.width, self.linear, self.quadratic)


def _cost(tokens: float, width: int, linear: float, quadratic: float) -> float:
    return linear * tokens * width**2 + quadratic * tokens**2 * width


def scalings(measurements: Iterable[Measurement]) -> list[Scaling]:
    """Of the sides that ran at three sizes or more with all threads."""
    found = []
    measurements = sorted(measurements, key=lambda measurement: measurement.image_tokens)
    names = dict.fromkeys(result.name for one in measurements for result in one.sides)
    for name in names:
        pairs = [
            (one, result)
            for one in measurements
            for result in one.sides
            if result.name == name and result.measured and not one._fewer_threads(result)
        ]
        if len(pairs) < 3:
            continue
        first = pairs[0][0]
        tokens, seconds = [one.image_tokens for one, _ in pairs], [result.median for _, result in pairs]
        whole = [token + first.text_tokens for token in tokens]
        linear, quadratic = _fit(whole, seconds, first.width)
        predicted = _cost(whole[-1], first.width, *_fit(whole[:-1], seconds[:-1], first.width))
        found.append(Scaling(name, tokens, seconds, first.text_tokens, first.width, linear, quadratic, predicted))
    return found


def _fit(tokens: Sequence[float], seconds: Sequence[float], width: int) -> tuple[float, float]:
    """(a, b) by least squares of relative errors, neither negative."""
    import numpy as np

    count, times = np.array(tokens, np.float64), np.array(seconds)
    terms = np.stack([count * width**2, count**2 * width], axis=1) / times[:, None]
    both = np.linalg.lstsq(terms, np.ones(len(seconds)), rcond=None)[0]
    if (both >= 0).all():
        return float(both[0]), float(both[1])
    alone = [float(term.sum() / (term**2).sum()) for term in terms.T]
    residuals = [((1 - term * factor) ** 2).sum() for term, factor in zip(terms.T, alone)]
    return (alone[0], 0.0) if residuals[0] <= residuals[1] else (0.0, alone[1])


def thread_speedups(measurements: Iterable[Measurement]) -> list[tuple[str, int, float]]:
    """[(side, threads, speed-up)]: time with 1 thread over time with all, round by round."""
    found = []
    for one in measurements:
        by_name = {result.name: result for result in one.sides if result.measured}
        for name, single in by_name.items():
            many = by_name.get(name[: -len("-1-thread")]) if name.endswith("-1-thread") else None
            if many is not None:
                ratios = [a / b for a, b in zip(single.seconds, many.seconds)]
                found.append((many.name, many.threads, statistics.median(ratios)))
    return found
