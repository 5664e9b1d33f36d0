"""Plots measurements; needs matplotlib."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence

from ..utils.files import atomic_write
from ..utils.types import PathLike
from .results import Measurement, scalings


def plot(path: PathLike, measurements: Sequence[Measurement]) -> None:
    """Writes a PNG, SVG or PDF: for ``scale`` times over image tokens with fits, else bars of the medians."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    scale = [one for one in measurements if one.bench == "scale"]
    others = [one for one in measurements if one.bench != "scale" and any(side.measured for side in one.sides)]
    panels = len(others) + bool(scale)
    figure = Figure(figsize=(8, 4 * max(panels, 1)), layout="constrained")
    axes = list(figure.subplots(max(panels, 1), squeeze=False)[:, 0])
    if scale:
        _plot_scale(axes.pop(0), scale)
    for axis, measurement in zip(axes, others):
        _plot_bars(axis, measurement)
    with atomic_write(path) as file:
        figure.savefig(file, format=str(path).rpartition(".")[2].lower(), dpi=150)


def _plot_scale(axis, measurements):
    for scaling in scalings(measurements):
        first, last = scaling.tokens[0], scaling.tokens[-1]
        (points,) = axis.plot(scaling.tokens, scaling.seconds, "o", label=f"{scaling.name}, measured")
        line = [first + (last - first) * i / 100 for i in range(101)]
        axis.plot(
            line,
            [scaling.at(tokens) for tokens in line],
            color=points.get_color(),
            label=f"{scaling.linear:.2g} T D² + {scaling.quadratic:.2g} T² D",
        )
    axis.set(title="One step", xlabel="image tokens", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    axis.legend()


def _plot_bars(axis, measurement):
    sides = [result for result in measurement.sides if result.measured]
    medians = [result.median for result in sides]
    errors = [[m - min(r.seconds), max(r.seconds) - m] for m, r in zip(medians, sides)]
    colors = ["C0" if result.ours else "C7" for result in sides]
    axis.barh([result.name for result in sides], medians, xerr=list(zip(*errors)), color=colors)
    axis.invert_yaxis()
    axis.set(title=measurement.title, xlabel="seconds")
