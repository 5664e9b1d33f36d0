"""Draws ``log.jsonl`` of a run; needs matplotlib."""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
from collections.abc import Sequence

from ..utils.errors import CheckpointNotFoundError, InputError
from ..utils.files import atomic_write
from ..utils.types import PathLike
from .log import T_BINS, read_log

SMOOTHING = 0.9  # of the line over the points: how much of it a new point leaves
_SUFFIXES = ("png", "svg", "pdf")


def plot_run(directory: PathLike, path: PathLike | None = None) -> str:
    """Draws a run's loss with a smoothed line, gradient norm and rate, the loss by time, and numbers of validations.

    Args:
        directory: of the run, with its ``log.jsonl``.
        path: of the plot, .png, .svg or .pdf; default ``log.png`` in ``directory``.

    Returns:
        ``path``.

    Raises:
        CheckpointNotFoundError: there is no log.
        InputError: the log has no step yet, the suffix is another one, or matplotlib is not installed.
    """
    log = os.path.join(directory, "log.jsonl")
    target = os.path.join(directory, "log.png") if path is None else os.fspath(path)
    suffix = target.rpartition(".")[2].lower()
    if suffix not in _SUFFIXES:
        raise InputError(f"{target}: the name of a plot has to end in .png, .svg or .pdf.")
    if not os.path.isfile(log):
        raise CheckpointNotFoundError(f"{log} does not exist. Name the output directory of a run.")
    entries = read_log(log)
    steps = [entry for entry in entries if "loss" in entry and "lr" in entry]
    if not steps:
        raise InputError(f"{log} has no loss yet: it is written every training.log_every steps.")
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("A plot needs matplotlib: pip install 'ppsd3[train]'.") from error
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    noted = [entry for entry in entries if "lr" not in entry]
    panels = [_plot_loss, _plot_norm, _plot_times, *([_plot_noted] if noted else [])]
    figure = Figure(figsize=(9, 3 * len(panels)), layout="constrained")
    for panel, axis in zip(panels, figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]):
        panel(axis, noted if panel is _plot_noted else steps)
    with atomic_write(target) as file:
        figure.savefig(file, format=suffix, dpi=120)
    return target


def smoothed(values: Sequence[float], keep: float = SMOOTHING) -> list[float]:
    """Exponential moving averages, without the pull of the beginning to zero."""
    result, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(total / weight)
    return result


def _columns(entries, name):
    found = [entry for entry in entries if isinstance(entry.get(name), (int, float))]
    return [entry["step"] for entry in found], [entry[name] for entry in found]


def _plot_loss(axis, entries):
    steps, losses = _columns(entries, "loss")
    axis.plot(steps, losses, ".", color="C0", alpha=0.35, label="mean of an interval")
    axis.plot(steps, smoothed(losses), color="C0", label="smoothed")
    skipped, shares = _columns(entries, "skipped")
    for step, share in zip(skipped, shares):
        if share:
            axis.axvline(step, color="C3", linestyle=":")
    axis.set(title="Loss (dotted: steps were skipped)" if any(shares) else "Loss", xlabel="step", ylabel="loss")
    axis.legend()


def _plot_norm(axis, entries):
    axis.plot(*_columns(entries, "grad_norm"), color="C1", label="gradient norm, before clipping")
    axis.set(title="Gradient norm and learning rate", xlabel="step", ylabel="norm", ylim=(0, None))
    rate = axis.twinx()
    rate.plot(*_columns(entries, "lr"), color="C2", label="learning rate")
    rate.set(ylabel="learning rate", ylim=(0, None))
    lines = [*axis.get_lines(), *rate.get_lines()]
    axis.legend(lines, [line.get_label() for line in lines], loc="lower left")


def _plot_times(axis, entries):
    """The loss in each part of (0, 1): smoothed lines from data (blue) to noise (red)."""
    from matplotlib import colormaps

    for part in range(T_BINS):
        points = [
            (entry["step"], entry["loss_t"][part])
            for entry in entries
            if (entry.get("loss_t") or [None] * T_BINS)[part]
        ]
        if points:
            steps, losses = zip(*points)
            label = f"{part / T_BINS:.1f} to {(part + 1) / T_BINS:.1f}"
            axis.plot(steps, smoothed(losses), color=colormaps["coolwarm"](part / (T_BINS - 1)), label=label)
    axis.set(title="Loss by time, smoothed: 0 is data, 1 is noise", xlabel="step", ylabel="loss")
    axis.legend(ncols=2, fontsize="small")


def _plot_noted(axis, entries):
    for name in sorted({name for entry in entries for name in entry} - {"step"}):
        axis.plot(*_columns(entries, name), ".-", label=name)
    axis.set(title="Validation", xlabel="step")
    axis.legend()
