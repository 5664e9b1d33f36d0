"""What Paddle and the system say of GPUs: the only place that asks them, so that tests can answer for another machine.

A build of Paddle has code for some compute capabilities. Code for 8.0 runs on 8.6 and 8.9 too, never on 9.0: within a
generation newer cards run older code (CUDA programming guide, "Binary compatibility").
"""

from __future__ import annotations

import ctypes
import dataclasses
import re

import paddle
from paddle import version as versions

from .errors import InputError

INSTALL_GUIDE = "https://www.paddlepaddle.org.cn/install/quick"
OLDEST_PADDLE = (2, 6, 2)
FLASH_ATTENTION = BFLOAT16 = (8, 0)  # from this capability on

# What builds have code for that cannot say it themselves: (start of Paddle's version, CUDA) -> capabilities, as read
# from the wheel on PyPI.
_CODE = {("2.6.", "11.8"): ((6, 1), (7, 0), (7, 5), (8, 0), (8, 6))}
# Capability from which on -> generation, and the directory of Paddle's index with a build for it.
_BUILDS = {
    (10, 0): ("Blackwell", "cu129"),
    (9, 0): ("Hopper", "cu126"),
    (8, 9): ("Ada", "cu126"),
    (8, 0): ("Ampere", "cu126"),
    (7, 5): ("Turing", "cu126"),
    (7, 0): ("Volta", "cu118"),
    (6, 0): ("Pascal", "cu118"),
}


@dataclasses.dataclass(frozen=True)
class GpuBuild:
    """This build of Paddle.

    Attributes:
        version: of Paddle.
        cuda, cudnn: what it was built with; None in a build for the CPU.
        capabilities: what it has code for; None if that is not known.
    """

    version: str
    cuda: str | None = None
    cudnn: str | None = None
    capabilities: tuple[tuple[int, int], ...] | None = None

    @property
    def is_too_old(self) -> bool:
        """Whether ppsd3 needs a newer one."""
        return version_numbers(self.version) < OLDEST_PADDLE

    def runs_on(self, card: Card) -> bool | None:
        """Whether it has code for a card; None if that is not known."""
        if self.capabilities is None:
            return None
        major, minor = card.capability
        return any(had[0] == major and had[1] <= minor for had in self.capabilities)


@dataclasses.dataclass(frozen=True)
class Card:
    """A GPU: its number for Paddle, its name, its compute capability, and the bytes of its memory."""

    index: int
    name: str
    capability: tuple[int, int]
    memory: int

    @property
    def generation(self) -> str:
        """NVIDIA's name of the architecture."""
        return _build_for(self.capability)[0]

    def __str__(self) -> str:
        return f"gpu:{self.index} {self.name} ({self.generation}, compute capability {dotted(self.capability)})"


def build() -> GpuBuild:
    """The build of Paddle that is installed."""
    version = paddle.__version__
    if not paddle.is_compiled_with_cuda():
        return GpuBuild(version)
    cuda = str(versions.cuda())
    asked = getattr(versions, "cuda_archs", None)  # came after 3.0
    stated = tuple(divmod(int(number), 10) for number in (asked() if asked else None) or ())
    known = (code for (start, of), code in _CODE.items() if version.startswith(start) and cuda == of)
    return GpuBuild(version, cuda, str(versions.cudnn()), stated or next(known, None))


def count() -> int:
    """How many GPUs Paddle sees."""
    return paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0


def cards() -> list[Card]:
    """The GPUs that Paddle sees and can describe."""
    return [card for card in map(_card, range(count())) if card is not None]


def _card(index):
    try:
        found = paddle.device.cuda.get_device_properties(index)
    except (ValueError, RuntimeError, OSError):  # a driver that does not answer
        return None
    return Card(index, found.name, (found.major, found.minor), found.total_memory)


def card_of(device: str) -> Card | None:
    """The GPU of this name, "gpu" or "gpu:1"; None for another device."""
    kind, _, index = device.partition(":")
    return next((card for card in cards() if kind == "gpu" and card.index == int(index or 0)), None)


def dtypes_of(device: str) -> tuple[str, ...]:
    """What a device computes networks in: float32 alone but for GPUs, of which the older ones have no bfloat16."""
    card = card_of(device)
    if card is None:
        return ("float32",)
    return ("float32", "float16", *(("bfloat16",) if card.capability >= BFLOAT16 else ()))


def driver() -> tuple[str | None, tuple[int, int] | None]:
    """(version of NVIDIA's driver, newest CUDA that it supports); None for what is not found."""
    version = None
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8", errors="replace") as file:
            match = re.search(r"\b(\d{3}\.[\d.]+)\b", file.read(4096))
            version = match and match[1]
    except OSError:  # another system than Linux, or no driver
        pass
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            number = ctypes.c_int()
            if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(number)) == 0:
                return version, (number.value // 1000, number.value % 1000 // 10)
        except (OSError, AttributeError):
            continue
    return version, None


def loaded_cudnn() -> str | None:
    """The version of the cuDNN that Paddle finds on this machine; None if it finds none."""
    try:
        number = paddle.device.get_cudnn_version()
    except (RuntimeError, OSError, ValueError):
        return None
    if not number:
        return None
    major, rest = divmod(number, 1000 if number < 9000 else 10000)  # counted otherwise from cuDNN 9 on
    return f"{major}.{rest // 100}"


def version_numbers(version: str) -> tuple[int, ...]:
    """``(3, 0, 0)`` of ``"3.0.0rc1"``: at most three numbers."""
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def dotted(capability: tuple[int, ...]) -> str:
    """``"8.6"`` for ``(8, 6)``."""
    return ".".join(map(str, capability))


def how_to_install(card: Card | None = None) -> str:
    """Which Paddle to install for a card, or in general, in a sentence."""
    if card is None or _build_for(card.capability)[1] is None:
        return f"Install paddlepaddle-gpu from Paddle's own index, as its install guide says ({INSTALL_GUIDE})."
    where = f"https://www.paddlepaddle.org.cn/packages/stable/{_build_for(card.capability)[1]}/"
    return (
        f"Uninstall it and install another from Paddle's own index, as its install guide says ({INSTALL_GUIDE}), e.g. "
        f'`pip install "paddlepaddle-gpu>=3.2,<3.4" -i {where}`.'
    )


def how_to_upgrade(old: GpuBuild) -> str:
    """What to install in place of a Paddle that is too old, in a sentence."""
    return how_to_install() if old.cuda else 'Run `pip install "paddlepaddle>=2.6.2,<3.4"`.'


def require_new_enough() -> None:
    """Refuses a Paddle that lacks what ppsd3 needs, before an import fails.

    Raises:
        InputError: it says what to install.
    """
    installed = build()
    if installed.is_too_old:
        least = dotted(OLDEST_PADDLE)
        raise InputError(
            f"ppsd3 needs Paddle {least}, and {installed.version} is installed. {how_to_upgrade(installed)}"
        )


def lacks_code(card: Card, of: GpuBuild) -> str | None:
    """Why a build does not run on a card, and what to install; None if it does, or if that is not known."""
    if of.runs_on(card) is not False:
        return None
    have = ", ".join(map(dotted, of.capabilities or ()))
    return f"Paddle {of.version} (CUDA {of.cuda}) has no code for {card}; it has code for {have}."


def require_code(device: str) -> None:
    """Refuses a device that this build of Paddle has no code for, before Paddle fails in the middle of a computation.

    Raises:
        InputError: it names the card, what the build has code for, and what to install.
    """
    card = card_of(device) if device.startswith("gpu") else None
    lack = None if card is None else lacks_code(card, build())
    if lack is not None:
        raise InputError(f"{lack} {how_to_install(card)} Or use 'cpu'.")


def _build_for(capability):
    return next((made for since, made in _BUILDS.items() if capability >= since), ("older than Pascal", None))
