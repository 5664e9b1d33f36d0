"""What the user asks of the kernels: which may be used, and how exactly they multiply."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

from ..utils.contexts import held
from ..utils.errors import ConfigError
from ..utils.paddle_internals import allow_tf32

LEVELS = ("reference", "paddle", "onednn", "native")  # each may use those before it too
PRECISIONS = ("highest", "high", "strassen", "medium")


class Settings(NamedTuple):
    """One state of all settings. Replaced as a whole, so that a thread never sees half of a change."""

    level: str
    precision: str = "high"
    forced: tuple[tuple[str, str], ...] = ()  # pairs (operation, implementation)


def _level(name, source):
    if name not in LEVELS:
        raise ConfigError(f"{source} is {name!r}, which is not known. Choose one of {', '.join(LEVELS)}.")
    return name


_process = Settings(_level(os.environ.get("PPSD3_KERNELS", LEVELS[-1]), "The environment variable PPSD3_KERNELS"))
_context: ContextVar[Settings | None] = ContextVar("kernel_settings", default=None)  # of a ``with`` block
_changing = threading.Lock()


def current() -> Settings:
    """The settings that hold for the present thread."""
    return _context.get() or _process


class _Change:
    """Changes settings from its creation on, for all threads, or within a block for that block; as a context manager,
    until the end of its block and for what runs in it alone, so that blocks of several threads may overlap."""

    def __init__(self, **changes: Any) -> None:
        self._changes, before = changes, current()
        self._before = {name: getattr(before, name) for name in changes}
        self._block: Token[Settings | None] | None = None
        _put(changes)

    def __enter__(self) -> _Change:
        if _context.get() is None:
            _put(self._before)
            self._block = _context.set(_process._replace(**self._changes))
        return self

    def __exit__(self, *exception: object) -> None:
        if self._block is None:
            _put(self._before)
        else:
            _context.reset(self._block)


def _put(changes: Mapping[str, Any]) -> None:
    """Changes the settings of the block that this thread is in, or else of the process."""
    global _process
    own = _context.get()
    if own is not None:
        _context.set(own._replace(**changes))
        return
    with _changing:
        _process = _process._replace(**changes)


def kept() -> contextlib.AbstractContextManager[None]:
    """Within the block, the settings are those at its start, whatever other threads change."""
    return held(_context, current())


class use_kernels(_Change):
    """Chooses which kernels may be used, from the call on; as a context manager, until its end.

    Args:
        level: "reference" uses the definitions alone; "paddle" also faster ways within Paddle; "onednn" also the oneDNN
            library of Paddle's wheel; "native" (the initial state, unless the environment variable ``PPSD3_KERNELS``
            says otherwise) also the package's own kernels.
        forced: for each named operation, the name of the implementation that is used for all arguments that it accepts,
            also where another one is measured to be faster: ``use_kernels(attention="amx")``.

    Raises:
        ConfigError: another level, or no such operation or implementation.
    """

    def __init__(self, level: str = "native", **forced: str) -> None:
        from .dispatch import implementation

        for operation, name in forced.items():
            implementation(operation, name)
        super().__init__(level=_level(level, "The level of kernels"), forced=tuple(forced.items()))


class use_native(_Change):
    """Chooses whether native kernels may be used: the level "native" of :class:`use_kernels`, or if not, "onednn"."""

    def __init__(self, enabled: bool) -> None:
        super().__init__(level="native" if enabled else "onednn")


class float32_matmul_precision(_Change):
    """How exactly float32 is multiplied by native linear layers and attention on CPUs, and by matrix products on GPUs,
    from the call on; as a context manager, until its end.

    On GPUs from Ampere on, "highest" is float32 as it is, and everything else lets cuBLAS round operands to TF32, as
    torch's "high" does. That holds for the whole process, also in a ``with`` block. Convolutions may use TF32 in any
    case, which is torch's default too; the environment variable ``NVIDIA_TF32_OVERRIDE=0`` keeps it from everything.

    Args:
        precision: the names are torch's (``torch.set_float32_matmul_precision``).

            - "highest": float32, each sum in the usual way; relative errors near 5e-7.
            - "high" (the initial state): where the CPU has AMX, each operand as the sum of three bfloat16 numbers: up
              to twice as fast as "highest", and no less exact. Elsewhere as "highest".
            - "strassen": as "high", but where the CPU has AVX-512 and no AMX, wide layers with many rows by Strassen's
              algorithm: up to an eighth faster on AMD's CPUs. It mixes rows: errors are near 3e-6 of the largest result
              among some 200 rows, and what is not finite in one picture of a batch reaches the others.
            - "medium": operands of linear layers rounded to bfloat16, with sums in float32, where the CPU has AMX or
              AVX512-BF16: two to four times as fast, relative errors near 3e-3. Meant for training.

    Raises:
        ConfigError: another name.
    """

    def __init__(self, precision: str) -> None:
        if precision not in PRECISIONS:
            raise ConfigError(f"precision={precision!r} is not known. Choose one of {PRECISIONS}.")
        super().__init__(precision=precision)
        _tell_gpus()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        _tell_gpus()


def _tell_gpus():
    allow_tf32(current().precision != "highest")
