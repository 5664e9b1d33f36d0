"""What a bench measured, and the numbers that follow from it."""

import dataclasses
import statistics
from typing import Optional


@dataclasses.dataclass
class SideResult:
    """One side of a measurement.

    Attributes:
        seconds (list): of the timed runs, in the order of the rounds.
        peak (int): bytes, most that were resident in its process.
        setup_seconds (float): loading, once.
        errors (dict): output -> relative error beside the reference.
        bar (float): the largest of them that counts as right.
        absent, failure (str): why it was not measured: not installed, or an error.
    """

    name: str
    ours: bool
    int8: bool
    roofline: bool
    threads: int
    bar: float
    seconds: list = dataclasses.field(default_factory=list)
    peak: Optional[int] = None
    setup_seconds: Optional[float] = None
    errors: dict = dataclasses.field(default_factory=dict)
    is_reference: bool = False
    absent: str = ""
    failure: str = ""

    @classmethod
    def of(cls, side):
        """The empty result of ``side``."""
        bar = side.bench.bars[side.int8]
        return cls(side.name, side.ours, side.int8, side.roofline, side.threads, bar)

    @property
    def measured(self):
        """Whether it ran to the end."""
        return bool(self.seconds) and not self.failure

    @property
    def error(self):
        """The largest of the errors, or None."""
        return max(self.errors.values(), default=None)

    @property
    def wrong(self):
        """Whether its output is not what the reference has: its time says nothing then."""
        return self.error is not None and not self.error <= self.bar

    @property
    def median(self):
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self):
        """(Slowest - fastest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclasses.dataclass
class Measurement:
    """One bench with its sides.

    Attributes:
        settings (dict): of the bench.
        flops (int): operations of one run, or None.
        gemm_flops (int): of one run of a roofline side, or None.
        image_tokens (int), width (int): of the transformer; for the fit over sizes.
    """

    bench: str
    title: str
    settings: dict
    image_tokens: int
    text_tokens: int
    width: int
    flops: Optional[int]
    gemm_flops: Optional[int]
    results: list

    @classmethod
    def of(cls, bench, results):
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
    def sides(self):
        """Results of the sides proper."""
        return [result for result in self.results if not result.roofline]

    @property
    def rival(self):
        """The fastest float32 rival that is right and has all threads, or None."""
        rivals = [
            result
            for result in self.sides
            if result.measured and not (result.ours or result.int8 or result.wrong or self._fewer_threads(result))
        ]
        return min(rivals, key=lambda result: result.median, default=None)

    def _fewer_threads(self, result):
        return result.threads < self.settings["threads"]

    def ratio(self, result):
        """Time over that of the fastest rival, the median of the rounds' ratios; or None."""
        rival = self.rival
        if rival is None or not result.measured:
            return None
        return statistics.median(a / b for a, b in zip(result.seconds, rival.seconds))

    def memory_ratio(self, result):
        """Peak memory over the smallest of any right float32 rival, or None."""
        peaks = [
            other.peak
            for other in self.sides
            if other.measured and other.peak and not (other.ours or other.int8 or other.wrong)
        ]
        return result.peak / min(peaks) if peaks and result.peak else None

    @property
    def roofline(self):
        """FLOP/s of float32 matrix products: of the fastest library by medians, or None."""
        rates = [self.gemm_flops / result.median for result in self.results if result.roofline and result.measured]
        return max(rates, default=None)

    def rate(self, result):
        """FLOP/s, or None."""
        if not result.measured:
            return None
        work = self.gemm_flops if result.roofline else self.flops
        return work / result.median if work else None

    def share(self, result):
        """Part of the roofline that a float32 side with all threads reaches, or None."""
        roofline, rate = self.roofline, self.rate(result)
        if result.int8 or self._fewer_threads(result) or None in (roofline, rate):
            return None
        return rate / roofline

    def to_json(self):
        """dict for JSON: all times, and what follows from them."""
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
    """How a side's time grows: ``seconds = a T D^2 + b T^2 D``, T all tokens and D the width.

    Attributes:
        tokens (list): image tokens, ascending; ``seconds`` beside them.
        linear, quadratic (float): a and b, not negative.
        predicted (float): seconds at the largest size by a fit to the others; more means a faster growth than this.
    """

    name: str
    tokens: list
    seconds: list
    text_tokens: int
    width: int
    linear: float
    quadratic: float
    predicted: float

    @property
    def growth(self):
        """Time at the largest size over :attr:`predicted`."""
        return self.seconds[-1] / self.predicted

    def at(self, image_tokens):
        """The fit's seconds."""
        return _cost(image_tokens + self.text_tokens, self.width, self.linear, self.quadratic)


def _cost(tokens, width, linear, quadratic):
    return linear * tokens * width**2 + quadratic * tokens**2 * width


def scalings(measurements):
    """[Scaling] of the sides that ran at three sizes or more with all threads."""
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
        fit = _fit(whole, seconds, first.width)
        predicted = _cost(whole[-1], first.width, *_fit(whole[:-1], seconds[:-1], first.width))
        found.append(Scaling(name, tokens, seconds, first.text_tokens, first.width, *fit, predicted))
    return found


def _fit(tokens, seconds, width):
    """(a, b) by least squares of relative errors, neither negative."""
    import numpy as np

    tokens, seconds = np.array(tokens, np.float64), np.array(seconds)
    terms = np.stack([tokens * width**2, tokens**2 * width], axis=1) / seconds[:, None]
    both = np.linalg.lstsq(terms, np.ones(len(seconds)), rcond=None)[0]
    if (both >= 0).all():
        return tuple(map(float, both))
    alone = [float(term.sum() / (term**2).sum()) for term in terms.T]
    residuals = [((1 - term * factor) ** 2).sum() for term, factor in zip(terms.T, alone)]
    return (alone[0], 0.0) if residuals[0] <= residuals[1] else (0.0, alone[1])


def thread_speedups(measurements):
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
