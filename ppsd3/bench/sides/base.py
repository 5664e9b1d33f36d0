"""Base class of the sides."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np

from ...utils.device import peak_resident_set


class Side:
    """One way to run a bench.

    A side is made in the main process, which reads its attributes, and again in its own process, which calls
    :meth:`prepare`, or :meth:`setup`, :meth:`warm_up` and then :meth:`run`, the only one that is timed.

    Args:
        name: as in ``--sides``.
        bench: its :class:`~ppsd3.bench.benches.Bench`.
        int8: whether it uses int8, and so may differ more from the others.
        threads: default the bench's.

    Attributes:
        call: the work, made by :meth:`setup`.
        ours: whether it is ppsd3; the others are rivals.
        bare: whether its process must not load Paddle.
        roofline: whether it measures the machine instead of the bench.
        packages: required module -> its name for pip.
    """

    name: str
    bench: Any
    int8: bool
    threads: int
    call: Callable[..., Any]

    ours: bool = False
    bare: bool = False
    roofline: bool = False
    packages: dict[str, str] = {}

    def __init__(self, name: str, bench: Any, int8: bool = False, threads: int | None = None) -> None:
        self.name, self.bench, self.int8 = name, bench, int8
        self.threads = threads or bench.threads

    def missing(self) -> str:
        """Why this side cannot run here, with the remedy; "" if it can. Imports nothing heavy."""
        lacking = [package for module, package in self.packages.items() if importlib.util.find_spec(module) is None]
        return f"{sys.executable} -m pip install {' '.join(lacking)}" if lacking else ""

    def prepare(self, workspace: str) -> None:
        """Converts the model; done once, in a process of its own, and not measured."""

    def setup(self, workspace: str) -> None:
        """Loads what :meth:`run` needs."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """The first, untimed run, which compiles and allocates."""
        self.call(**self.bench.warm_up)

    def run(self) -> Any:
        """Runs the bench once and returns what :meth:`arrays` takes."""
        return self.call()

    def arrays(self, result: Any) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, numpy array), to compare with the other sides."""
        raise NotImplementedError

    def peak(self) -> int:
        """Peak resident memory of this process in bytes."""
        return peak_resident_set()
