"""Runs cases under limits, in the process that :mod:`fuzz.runner` starts, and writes a verdict on each."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
from typing import Any

from .case import Wrong

MEMORY = 1 << 30  # bytes that a case may allocate beside what the process holds when it begins
_SHOWN = 400  # characters of a message


def serve(requests, answers):
    """For each line "KIND SEED FIRST STOP" of ``requests``: the cases, a JSON line on each to ``answers``."""
    faulthandler.register(signal.SIGUSR1)
    warnings.simplefilter("ignore")
    importlib.import_module("ppsd3")  # before any case's time begins
    kinds: dict[str, Any] = {}
    for line in requests:
        name, seed, first, stop = line.split()
        if name not in kinds:
            corpus = pathlib.Path.cwd() / name
            corpus.mkdir()
            kinds[name] = importlib.import_module(f"fuzz.kinds.{name}").Kind(corpus)
        answers.write(json.dumps({"ready": name}) + "\n")
        for number in range(int(first), int(stop)):
            answers.write(json.dumps({"case": number, **judge(kinds[name], name, seed, number)}) + "\n")


def judge(kind, name, seed, number):
    """dict: the verdict on one case, what was changed, and what was said."""
    place = pathlib.Path.cwd() / "case"
    shutil.rmtree(place, ignore_errors=True)  # unlinked, not overwritten: earlier cases may have mapped these files
    place.mkdir()
    case = kind.case(random.Random(f"{name} {seed} {number}"), place)
    resource.setrlimit(resource.RLIMIT_DATA, (_held() + MEMORY, resource.RLIM_INFINITY))
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            case.run()
        verdict = {"verdict": "accepted"}
    except Exception as error:  # noqa: BLE001, what it is decides
        verdict = _verdict_on(error, case.names)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {"changed": case.changed[:_SHOWN], **verdict}


def _verdict_on(error, names):
    from ppsd3.utils.errors import PPSD3Error

    message = str(error)
    about = {"error": type(error).__name__, "message": message[:_SHOWN], "where": _where(error)}
    if isinstance(error, Wrong):
        return {"verdict": "wrong", **about}
    if not isinstance(error, PPSD3Error):
        return {"verdict": "raw error", **about}
    if not any(name in message or repr(name)[1:-1] in message for name in names):
        return {"verdict": "names nothing", **about, "names": [name[:80] for name in names]}
    return {"verdict": "refused", **about}


def _where(error):
    """The last line of the package that the error came through."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}ppsd3{os.sep}" in frame.filename]
    if not own:
        return ""
    return f"{own[-1].filename.rpartition(os.sep + 'ppsd3' + os.sep)[2]}:{own[-1].lineno} {own[-1].name}"


def _held():
    """Bytes of private memory that this process has asked for."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData"))


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    sys.setrecursionlimit(1000)
    serve(sys.stdin, answers)
