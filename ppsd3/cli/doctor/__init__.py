"""Check the installation, this machine and its GPUs, and directories for what interrupted saves have left.

Without directories, a picture of 64x64 pixels is drawn with the bundled model and compared with the one that it has to
be. Each thing that is wrong is shown with its remedy, and the exit code is then 1.

With --gpu-report, all that a GPU has to do is tried and measured, and written to a file to attach to an issue.

A save that was interrupted when all was written is completed. What others left is named, and removed with --clean,
unless the process that makes it is alive.
"""

import os

from ...utils.errors import InputError
from .findings import Findings


def add_arguments(parser):
    parser.add_argument("directories", nargs="*", metavar="DIR", help="where checkpoints or pictures are saved")
    parser.add_argument("--clean", action="store_true", help="remove what interrupted saves left in the directories")
    parser.add_argument("--device", help="where the picture is drawn: cpu, gpu or gpu:N (default: what Paddle takes)")
    parser.add_argument("--json", action="store_true", help="print what is found as JSON, with keys that stay")
    parser.add_argument(
        "--gpu-report",
        nargs="?",
        const="gpu_report.json",
        metavar="FILE",
        help="try and measure everything on the GPU, in at most 5 minutes, and write it to FILE (default: %(const)s)",
    )
    parser.add_argument(
        "--bench",
        action="store_true",
        help="with --gpu-report: also the time of a step at SD3-medium's size (10 minutes)",
    )
    parser.set_defaults(tune=lambda: None)  # it must run where nothing else does


def run(arguments):
    _check(arguments)
    if arguments.gpu_report is not None:
        return _gpu_report(arguments)
    findings = Findings(show=not arguments.json)
    for finding in _all(arguments):
        findings.add(finding)
    if arguments.json:
        print(findings.as_json())
    return 1 if findings.are_wrong else 0


def _check(arguments):
    if arguments.clean and not arguments.directories:
        raise InputError("--clean removes what is left in directories, and none is named. Name them: `--clean DIR`.")
    if arguments.device is not None and arguments.directories:
        raise InputError("--device is for the picture, which is not drawn when directories are named. Leave one out.")
    if arguments.gpu_report is not None and (arguments.directories or arguments.json):
        raise InputError("--gpu-report is a run of its own, and writes JSON. Leave --json and directories out.")
    if arguments.bench and arguments.gpu_report is None:
        raise InputError("--bench belongs to a GPU report. Say `--gpu-report --bench`, or see `ppsd3 bench --help`.")
    for directory in arguments.directories:
        if not os.path.isdir(directory):
            raise InputError(f"{directory} is no directory. Name one in which something was saved.")


def _gpu_report(arguments):
    from ...bench.gpu_report import write_report
    from ...utils.device import tune_process, usable_device

    device = usable_device(arguments.device or "gpu")
    tune_process()
    report = write_report(arguments.gpu_report, device, arguments.bench)
    failed = f"; failed: {', '.join(report.failed)}" if report.failed else ""
    print(
        f"{arguments.gpu_report}: {len(report.content['sections'])} sections{failed}. docs/gpu.md says how to read it."
    )
    return 1 if report.failed else 0


def _all(arguments):
    from . import gpus, installation

    yield from installation.versions()
    if installation.is_too_old():  # what follows uses parts of Paddle that it has not
        return
    from . import leftovers, self_test

    yield from gpus.look()
    yield from installation.machine()
    for directory in arguments.directories:
        yield from leftovers.in_directory(directory, arguments.clean)
    if not arguments.directories:
        yield from self_test.draw(arguments.device)
