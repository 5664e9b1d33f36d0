"""Measure ppsd3 beside diffusers (eager and compiled) and OpenVINO, as far as they are installed, on this machine.

All sides have the same weights, inputs and number of threads, and a process of their own; they run in turn, and each
output is compared with the first side's. The exit code is 1 if one of ppsd3's sides fails or is wrong.
"""

import importlib.util
import os
import sys

from ..utils.errors import InputError

_SUFFIXES = (".png", ".svg", ".pdf")


def add_arguments(parser):
    from ..bench.benches import BENCHES

    listed = "; ".join(f"{name}: {bench.summary}" for name, bench in BENCHES.items())
    parser.add_argument("benches", metavar="BENCH", nargs="+", choices=[*BENCHES, "all"], help=f"{listed}; or all")
    parser.add_argument("--sides", nargs="+", metavar="SIDE", help="only these, e.g. diffusers ppsd3 (default: all)")
    parser.add_argument("--repeats", type=int, help="timed runs of each side (default: 2 to 5, by bench)")
    parser.add_argument("--threads", type=int, help="that each side may use (default: all cores)")
    parser.add_argument(
        "--layers", type=int, help="of the transformer, 24 in SD3-medium, or T5 (default: 2; picture 4; load 24)"
    )
    parser.add_argument("--size", type=int, nargs="+", help="pixels a side, several allowed (default: by bench)")
    parser.add_argument("--tiny", action="store_true", help="tiny networks: to see that it runs, not how fast")
    parser.add_argument("--json", metavar="FILE", help="save all figures")
    parser.add_argument("--plot", metavar="FILE", help="save a plot (.png, .svg, .pdf); needs matplotlib")
    parser.add_argument(
        "--directory", help="where a directory for checkpoints of up to 5 GB is made, and deleted afterwards"
    )
    parser.add_argument("--quiet", action="store_true", help="no lines about what is being done")


def run(arguments):
    import shutil
    import tempfile

    from ..bench import report
    from ..bench.plot import plot

    benches = _benches(arguments)
    _check_files(arguments)
    workspace = tempfile.mkdtemp(prefix="ppsd3-bench-", dir=arguments.directory)
    try:
        print(report.machine_line(report.machine()), flush=True)
        measurements = list(_measure(benches, workspace, arguments))
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    scale = [measurement for measurement in measurements if measurement.bench == "scale"]
    print("\n".join(report.scale_lines(scale)))
    if arguments.json:
        report.write_json(arguments.json, measurements, ["ppsd3", *sys.argv[1:]])
    if arguments.plot:
        plot(arguments.plot, measurements)
    ours = [result for measurement in measurements for result in measurement.sides if result.ours]
    return 1 if any(result.failure or result.wrong for result in ours) else 0


def _measure(benches, workspace, arguments):
    from ..bench import report
    from ..bench.runner import run_bench

    def progress(text):
        if not arguments.quiet:
            print(text, file=sys.stderr, flush=True)

    for bench in benches:
        measurement = run_bench(bench, workspace, arguments.sides, arguments.repeats, progress)
        print("\n" + "\n".join(report.table(measurement)), flush=True)
        yield measurement


def _benches(arguments):
    """The benches that the arguments ask for, checked."""
    from ..bench.benches import BENCHES
    from ..utils.device import usable_cores

    for option in ("repeats", "threads", "layers"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise InputError(f"--{option} is {value}; it has to be 1 or more.")
    for size in arguments.size or ():
        if size < 16 or size % 16:
            raise InputError(f"--size {size}: pictures have sides of 16 pixels times a whole number, e.g. 512.")
    names = list(BENCHES) if "all" in arguments.benches else dict.fromkeys(arguments.benches)
    threads = arguments.threads or usable_cores()
    benches = [
        bench
        for name in names
        for bench in BENCHES[name].make(arguments.size, arguments.layers, threads, arguments.tiny)
    ]
    known = dict.fromkeys(side.name for bench in benches for side in bench.sides())
    unknown = [side for side in arguments.sides or () if side not in known]
    if unknown:
        raise InputError(f"--sides: there is no {', '.join(unknown)}; choose from {', '.join(known)}.")
    return benches


def _check_files(arguments):
    """Refuses before the measurements what would fail after them."""
    for option in ("json", "plot"):
        path = getattr(arguments, option)
        if path and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise InputError(f"--{option}: the directory of {path} does not exist; make it first.")
    if arguments.plot:
        if not arguments.plot.lower().endswith(_SUFFIXES):
            raise InputError(f"--plot {arguments.plot}: the name has to end in one of {', '.join(_SUFFIXES)}.")
        if importlib.util.find_spec("matplotlib") is None:
            raise InputError(f"--plot needs matplotlib: {sys.executable} -m pip install matplotlib")
