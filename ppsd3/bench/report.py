"""Prints measurements as tables, and writes them as JSON."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..utils.files import atomic_write
from ..utils.types import PathLike
from .results import Measurement, SideResult, scalings, thread_speedups

_HEADER = ("side", "median", "spread", "ratio", "memory", "ratio", "error", "GFLOP/s", "of roofline")
_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "torch", "diffusers", "transformers", "openvino", "nncf", "numpy")


def table(measurement: Measurement) -> Iterator[str]:
    """Lines of a table: sides that ran with their figures, then the others with the reason."""
    settings, rival = measurement.settings, measurement.rival
    rounds = max((len(result.seconds) for result in measurement.results), default=0)
    yield f"{measurement.title}: {settings['threads']} threads, {rounds} rounds" + (
        ", TINY" if settings["tiny"] else ""
    )
    rows = [_HEADER] + [_row(measurement, result) for result in measurement.results if result.measured]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    for row in rows:
        yield "  " + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))])
    for result in measurement.results:
        if result.absent:
            yield f"  {result.name.ljust(widths[0])}  absent: {result.absent}"
        elif result.failure:
            yield f"  {result.name.ljust(widths[0])}  failed: {' '.join(result.failure.split())}"
    if rival:
        yield f"  ratios: of time to {rival.name}, round by round; of memory to the rival that takes least"
    if measurement.roofline:
        yield (
            f"  roofline: {measurement.roofline / 1e9:.1f} GFLOP/s in float32 matrix products; a run is "
            f"{(measurement.flops or 0) / 1e9:.4g} GFLOP"
        )


def _row(measurement: Measurement, result: SideResult) -> tuple[str, ...]:
    if result.roofline:
        return (
            result.name,
            _seconds(result.median),
            f"{result.spread:.0%}",
            "",
            "",
            "",
            "",
            *_rates(measurement, result),
        )
    error = "reference" if result.is_reference else "" if result.error is None else f"{result.error:.1e}"
    return (
        result.name,
        _seconds(result.median),
        f"{result.spread:.0%}",
        _number(measurement.ratio(result)),
        f"{result.peak / 1e9:.2f} GB" if result.peak else "",
        _number(measurement.memory_ratio(result)),
        error + (" WRONG" if result.wrong else ""),
        *_rates(measurement, result),
    )


def _rates(measurement, result):
    rate = measurement.rate(result)
    return ("" if rate is None else f"{rate / 1e9:.1f}", _number(measurement.share(result)))


def _number(value):
    return "" if value is None else f"{value:.2f}"


def _seconds(value):
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def scale_lines(measurements: Sequence[Measurement]) -> Iterator[str]:
    """Lines about the growth of time with tokens, and the speed-up by threads."""
    for scaling in scalings(measurements):
        points = ", ".join(f"{tokens}: {_seconds(s)}" for tokens, s in zip(scaling.tokens, scaling.seconds))
        yield f"{scaling.name}, image tokens: {points}"
        yield (
            f"  fit: {scaling.linear:.3g} T D^2 + {scaling.quadratic:.3g} T^2 D seconds; the largest takes "
            f"{scaling.growth:.2f} times what the smaller ones predict"
        )
    for name, threads, speedup in thread_speedups(measurements):
        yield f"{name}: 1 to {threads} threads speed it up {speedup:.2f} times"


def machine() -> dict[str, Any]:
    """Processor, system, versions, and whether native kernels are in use."""
    from .. import __version__
    from ..ops import native
    from ..utils.device import usable_cores

    in_use, detail = native.status()
    return {
        "cpu": _cpu(),
        "cores": usable_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "ppsd3": __version__,
        "native_kernels": "in use" if in_use else f"not in use: {detail}",
        "packages": dict(_versions()),
    }


def machine_line(found: Mapping[str, Any]) -> str:
    """``machine()`` in one line."""
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return f"{found['cpu']}, {found['cores']} cores; {packages}; native kernels {found['native_kernels']}"


def _cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _versions():
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield package, importlib.metadata.version(package)


def write_json(path: PathLike, measurements: Sequence[Measurement], command: Any) -> None:
    """All of it as JSON: ``command``, ``machine``, ``measurements``, ``scalings``."""
    found = {
        "command": command,
        "machine": machine(),
        "measurements": [measurement.to_json() for measurement in measurements],
        "scalings": [{**vars(scaling), "growth": scaling.growth} for scaling in scalings(_of_scale(measurements))],
        "thread_speedups": thread_speedups(measurements),
    }
    with atomic_write(path) as file:
        file.write(json.dumps(found, indent=2).encode() + b"\n")


def _of_scale(measurements):
    return [measurement for measurement in measurements if measurement.bench == "scale"]
