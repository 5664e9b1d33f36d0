"""Check the installation, this machine and its GPUs, and directories for what interrupted saves have left.

Without directories, a picture of 64x64 pixels is drawn with the bundled model and compared with the one that it has to
be. Each thing that is wrong is shown with its remedy, and the exit code is then 1.

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
    parser.set_defaults(tune=lambda: None)  # it must run where nothing else does


def run(arguments):
    _check(arguments)
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
    for directory in arguments.directories:
        if not os.path.isdir(directory):
            raise InputError(f"{directory} is no directory. Name one in which something was saved.")


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
