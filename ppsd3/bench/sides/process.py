"""Sides that are whole processes, from start to a picture in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from .base import Side

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "generate_with_diffusers.py")


class GenerateSide(Side):
    """Draws one picture with the bundled model.

    Args:
        ours: ``ppsd3 generate``, or else a script with diffusers.
        compiler: False hides compilers and compiled kernels from the process.
    """

    file: str
    environment: dict[str, str]

    bare = True

    def __init__(self, name: str, bench: Any, ours: bool, compiler: bool = True) -> None:
        super().__init__(name, bench)
        self.ours: bool = ours
        self.compiler: bool = compiler
        self.packages: dict[str, str] = {} if ours else {n: n for n in ("torch", "diffusers", "transformers")}

    def setup(self, workspace: str) -> None:
        self.file = os.path.join(workspace, f"{self.name}.png")
        self.environment = dict(os.environ)
        if not self.compiler:
            empty = os.path.join(workspace, "empty")
            os.makedirs(empty, exist_ok=True)
            self.environment.pop("CXX", None)
            self.environment.update(PATH=empty, XDG_CACHE_HOME=empty)

    def call(self) -> str:
        """Runs the process and returns the file."""
        done = subprocess.run(
            self.command(), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode:
            message = done.stdout.decode(errors="replace").strip()[-500:]
            raise RuntimeError(f"{self.command()[1]} ended with exit code {done.returncode}: {message}")
        return self.file

    def command(self) -> list[str]:
        """The program and its arguments."""
        bench = self.bench
        if self.ours:
            arguments = ["--steps", str(bench.steps), "--seed", str(bench.seed), "--output", self.file, "--quiet"]
            return [sys.executable, "-m", "ppsd3", "generate", bench.prompt, *arguments]
        settings = (bench.checkpoint, bench.prompt, bench.steps, bench.seed, self.threads, self.file)
        return [sys.executable, SCRIPT, *map(str, settings)]

    def arrays(self, result: Any) -> Iterator[tuple[str, np.ndarray]]:
        import numpy as np
        from PIL import Image

        with Image.open(result) as picture:
            yield "picture", np.asarray(picture, dtype=np.float32)

    def peak(self) -> int:
        """Of the program, not of this process."""
        import resource

        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
