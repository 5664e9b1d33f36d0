"""Code in a process of its own: what an import or an environment does, and how much memory is needed."""

import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).parents[1]

# Defines peak(function): the bytes by which the resident set, mapped pages included, grows while ``function`` runs.
PEAK = r"""
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))

def peak(function):
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    kept = function()
    return status("VmHWM") - before
"""
HAS_PEAK = os.access("/proc/self/clear_refs", os.W_OK)


def run(code, *arguments, environment=os.environ):
    """What ``code`` prints, with ``arguments`` as its own; it finds the package and these helpers."""
    paths = [str(TESTS.parent), str(TESTS), environment.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        env={**environment, "PYTHONPATH": os.pathsep.join(paths).rstrip(os.pathsep)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
