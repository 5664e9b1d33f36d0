"""What a side is."""

import importlib.util
import sys


class Side:
    """One way of doing the work of a bench.

    A side is made in the main process, which asks what it is, and again in its own process, which calls
    :meth:`prepare`, or :meth:`setup`, :meth:`warm_up` and then :meth:`run`, the only one that is timed.

    Args:
        name (str): as in ``--sides``.
        bench (Bench): the work.
        int8 (bool): whether it rounds to int8, and then may differ more from the others.
        threads (int): default: the bench's.

    Attributes:
        ours (bool): whether it is ppsd3; the others are rivals.
        bare (bool): whether its process must be without Paddle.
        roofline (bool): it does no work of the bench, but measures what the machine can do.
        packages (dict): module that has to be installed -> its name for pip.
    """

    ours = bare = roofline = False
    packages = {}

    def __init__(self, name, bench, int8=False, threads=None):
        self.name, self.bench, self.int8 = name, bench, int8
        self.threads = threads or bench.threads

    def missing(self):
        """Why this side cannot run here, with the remedy; "" if it can. Imports nothing heavy."""
        lacking = [package for module, package in self.packages.items() if importlib.util.find_spec(module) is None]
        return f"{sys.executable} -m pip install {' '.join(lacking)}" if lacking else ""

    def prepare(self, workspace):
        """Done once, in a process of its own, and no part of using the side: converting the model."""

    def setup(self, workspace):
        """Loads what :meth:`run` needs."""
        raise NotImplementedError

    def warm_up(self):
        """What the first run would do for all: compile, allocate."""
        self.call(**self.bench.warm_up)

    def run(self):
        """Does the work once. Returns anything that :meth:`arrays` understands."""
        return self.call()

    def arrays(self, result):
        """Yields (name, numpy array), to compare with the other sides."""
        raise NotImplementedError

    def peak(self):
        """Most bytes that were resident in this process."""
        return peak_resident_set()


def peak_resident_set():
    """Bytes; of this process since it began to run its program, as Linux has them (else since it was forked)."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
