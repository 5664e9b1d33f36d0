"""Runs command lines of ppsd3 in a process whose every file, connection and program is written down.

``python -m fuzz.traced LOG`` takes a JSON list of command lines from standard input. Lines of LOG: what happened, a
tab, and the name; ``command`` begins each command line. Native code is watched by ``traced.c``.
"""

import contextlib
import io
import json
import os
import sys
import time

# Event of Python's audit -> how many of its arguments are paths, or what happened if none is.
_PATHS = {"open": 1, "os.listdir": 1, "os.scandir": 1, "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1}
_PATHS.update({"os.link": 2, "os.symlink": 2, "os.truncate": 1, "os.chmod": 1, "shutil.rmtree": 1, "ctypes.dlopen": 1})
_OTHERS = {"socket.connect": "connect", "socket.getaddrinfo": "connect", "socket.gethostbyname": "connect"}
_OTHERS.update({"subprocess.Popen": "run", "os.system": "run", "os.exec": "run", "os.posix_spawn": "run"})


def main(log):
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(what, name):
        name = os.fsdecode(name) if isinstance(name, (str, bytes)) else repr(name)
        os.write(descriptor, f"{what}\t{name}\n".encode("utf-8", "surrogateescape"))

    def hook(event, arguments):
        for path in arguments[: _PATHS.get(event, 0)]:
            if isinstance(path, (str, bytes, os.PathLike)):
                note("open", os.fspath(path))
        if event in _OTHERS:
            note(_OTHERS[event], arguments)

    from ppsd3.cli.main import main as ppsd3

    time.sleep = lambda seconds: None  # between the tries to reach a hub
    sys.addaudithook(hook)
    for line in json.load(sys.stdin):
        note("command", json.dumps(line))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                code = ppsd3(line)
            except SystemExit as error:
                code = error.code
        note("exit", str(code))
        note("said", json.dumps(printed.getvalue()))


if __name__ == "__main__":
    main(sys.argv[1])
