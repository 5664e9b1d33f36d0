"""All of a report in its order."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import paddle

from ... import __version__
from ...ops import dispatch
from ...utils import gpu
from ...utils.types import PathLike
from ..configurations import MEDIUM
from .operations import Form, attention_table
from .pictures import Pictures, report_pictures
from .report import Report
from .speed import SIZES, Steps, torch_seconds

SECONDS, SECONDS_WITH_BENCH = 300, 600
_TF32 = "NVIDIA_TF32_OVERRIDE"


def write_report(
    path: PathLike,
    device: str,
    bench: bool = False,
    model: PathLike = "shapes",
    size: int = 128,
    steps: int = 8,
    forms: dict[str, Form] | None = None,
    transformer: Mapping[str, Any] = MEDIUM["transformer"],
    bench_sizes: Sequence[int] = SIZES,
    say: Callable[[str], None] = print,
) -> Report:
    """Measures everything on a device, and writes it to a JSON file, section by section.

    Args:
        path: of the file.
        device: Paddle's name of it, e.g. "gpu:0"; Paddle computes there afterwards.
        bench: also time SD3-medium's transformer with random weights.
        model, size, steps: what is drawn.
        forms: of attention. Default: those of SD3.
        transformer, bench_sizes: what is timed.
        say: is given a line for each section.
    """
    os.environ.setdefault(_TF32, "0")  # else products in float32 are TF32's from Ampere on
    report = Report(path, SECONDS_WITH_BENCH if bench else SECONDS, say)
    paddle.set_device(device)
    report.describe(machine(device))
    dtypes = gpu.dtypes_of(device)
    report.section("attention", functools.partial(attention_table, dtypes, forms))
    report_pictures(report, Pictures(model, device, dtypes[-1], size, steps))
    report.section("kernels", dispatch.summary)  # some are compared and timed at their first use, so these come last
    if bench:
        report_speed(report, transformer, dtypes[-1], bench_sizes, device)
    report.finish()
    return report


def report_speed(report: Report, transformer: Mapping[str, Any], dtype: str, sizes: Sequence[int], device: str) -> None:
    """Seconds a step, ours and torch's, eager and compiled."""
    paddle.set_device(device)
    steps = Steps(transformer, dtype)
    if report.section(f"bench: build, {dtype}", steps.build) is None:
        return
    for size in sizes:
        report.section(f"bench: ppsd3 eager, {size}, {dtype}", functools.partial(steps.seconds, size))
    steps.network.compile()
    for size in sizes:
        report.section(f"bench: ppsd3 compiled, {size}, {dtype}", functools.partial(steps.seconds, size))
    del steps  # torch needs its memory
    if device.startswith("gpu"):
        paddle.device.cuda.empty_cache()
    elif device != "cpu":
        return  # a device that torch has not
    for compiled in (False, True):
        how = "compiled" if compiled else "eager"
        for size in sizes:
            measure = functools.partial(torch_seconds, transformer, dtype, size, compiled, device)
            report.section(f"bench: torch {how}, {size}, {dtype}", measure)


def machine(device: str) -> dict[str, Any]:
    """What a report is about, without names of users, machines and directories."""
    build = gpu.build()
    version, supported = gpu.driver()
    card = gpu.card_of(device)
    return {
        "ppsd3": __version__,
        "device": device,
        "paddle": build.version,
        "cuda": build.cuda,
        "cudnn": gpu.loaded_cudnn(),
        "code": None if build.capabilities is None else [gpu.dotted(one) for one in build.capabilities],
        "driver": version,
        "driver_cuda": None if supported is None else gpu.dotted(supported),
        "gpu": None if card is None else card.name,
        "capability": None if card is None else gpu.dotted(card.capability),
        "memory": None if card is None else card.memory,
        "cards": gpu.count(),
        "tf32_override": os.environ.get(_TF32),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
