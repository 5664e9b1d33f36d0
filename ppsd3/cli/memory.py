"""Which ways to hold a pipeline's networks fit, and what to call for the fastest that does.

Weights are counted from headers. What a picture needs beside them is counted too, and measured on CPUs only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..loaders.recognition import Component
from ..utils import gpu
from ..utils.device import available_memory
from ..utils.sizes import in_words

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_T5 = "text_encoder_3"
_QUANTIZED = ("transformer", "controlnet", _T5)  # what pipe.quantize() takes
# Bytes for a picture of 1024x1024 beside the weights: most of it the VAE's decoder, in float32 on a CPU 5.6 GB, with
# tiles of 512 pixels 1.6 GB (docs/guide/memory.md); half of that in 16 bits.
_PICTURE = {4: 5.6e9, 2: 2.8e9}
_TILED = {4: 1.6e9, 2: 0.8e9}
_BESIDE = 0.8e9  # what a text encoder or the transformer needs beside its weights, with CUDA's own; a guess


class Place(NamedTuple):
    """Where weights may lie: the bytes that are free there, and the dtypes that compute there."""

    name: str
    free: int
    is_gpu: bool
    dtypes: tuple[str, ...]

    @property
    def preferred(self) -> str:
        """The dtype that is meant for it."""
        return next((dtype for dtype in ("bfloat16", "float16") if dtype in self.dtypes), "float32")


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to hold networks.

    Attributes:
        name: as the table has it.
        on_gpu, in_memory: (components, bytes of a number) -> bytes where it computes, and in the computer's memory,
            also while it is loaded.
        loading: arguments of ``from_pretrained`` beside ``paddle_dtype``.
        after: what is called then; ``{gpu}`` is the GPU's number, and a line with it is for GPUs.
        one_at_a_time: the VAE, with what a picture takes there, does not meet the other networks.
        for_cpu, for_gpu: where it makes sense.
    """

    name: str
    on_gpu: Callable[[Sequence[Component], int], int]
    in_memory: Callable[[Sequence[Component], int], int] = lambda parts, width: 0
    loading: str = ""
    after: tuple[str, ...] = ()
    one_at_a_time: bool = False
    for_cpu: bool = True
    for_gpu: bool = True


def _all(parts, width):
    return sum(_held(part, width) for part in parts)


def _all_int8(parts, width):
    return sum(_held_int8(part, width) for part in parts)


def _largest(parts, width):
    return max(_held(part, width) for part in parts)


def _largest_int8(parts, width):
    return max(_held_int8(part, width) for part in parts)


def _blocks(parts, width):
    """Two blocks: the next one is copied while one computes."""
    return 2 * width * max(part.largest_block for part in parts)


def _held_in_16_bits(parts, width):
    """The largest network with its linear layers in 16 bits, and one block as it computes."""
    return max(2 * part.values + width * part.largest_block for part in parts)


def _held(part, width):
    return (part.values - part.int8_values) * width + part.int8_values


def _held_int8(part, width):
    quantized = 0 if part.int8_values or part.name not in _QUANTIZED else part.quantizable
    return _held(part, width) - (width - 1) * quantized


_INT8 = "pipe.quantize('int8')"
_OFFLOAD = "pipe.enable_model_cpu_offload({gpu})"
_ON_DEMAND = "load_components='on_demand'"
# In the order in which they are worth trying: as it is, then the same picture at some cost in time, then int8, which
# changes the picture a little. Networks become int8 after they have been read whole.
WAYS = (
    Way("", _all),
    Way("model offload", _largest, _all, after=(_OFFLOAD,), one_at_a_time=True, for_cpu=False),
    Way("int8", _all_int8, _all, after=(_INT8, "pipe.to('gpu:{gpu}')")),
    Way("int8, model offload", _largest_int8, _all, after=(_INT8, _OFFLOAD), one_at_a_time=True, for_cpu=False),
    Way("on demand", _largest, loading=_ON_DEMAND, one_at_a_time=True),
    Way(
        "on demand, held in 16 bits",
        _held_in_16_bits,
        loading=f"{_ON_DEMAND}, storage_dtype='float16'",
        one_at_a_time=True,
        for_gpu=False,
    ),
    Way("sequential offload", _blocks, _all, after=("pipe.enable_sequential_cpu_offload({gpu})",), for_cpu=False),
)


def places(memory: int | None) -> list[Place]:
    """The computer's memory and each GPU; with ``memory`` (bytes) a GPU that has so much in place of those here."""
    found = [Place("CPU", available_memory(), False, ("float32",))]
    if memory is not None:
        return [*found, Place("gpu:0", memory, True, tuple(_BYTES))]
    for card in gpu.cards():
        name = f"gpu:{card.index}"
        found.append(Place(name, card.memory, True, gpu.dtypes_of(name)))
    return found


def table(components: Sequence[Component], among: Sequence[Place]) -> Iterator[str]:
    """A line for each dtype, with and without T5, and for each way to save memory in the dtype that a place prefers."""
    titles = " ".join(f"{f'{place.name} ({in_words(place.free)})':>24}" for place in among)
    yield f"{'weights in memory':38} {titles}"
    for dtype in _BYTES:
        for parts, without in _with_and_without_t5(components):
            saving = WAYS[1:] if parts is components and len(components) > 1 else ()
            for way in (WAYS[0], *saving):
                cells = [_cell(way, parts, dtype, place) for place in among]
                if any(cells):
                    label = ", ".join(filter(None, (dtype + without, way.name)))
                    yield f"{label:38} {' '.join(f'{cell:>24}' for cell in cells)}".rstrip()


def _with_and_without_t5(components):
    yield components, ""
    if len(components) > 1 and any(part.name == _T5 for part in components):
        yield [part for part in components if part.name != _T5], " without T5"


def _cell(way, parts, dtype, place):
    if way.name and not (dtype == place.preferred and (way.for_gpu if place.is_gpu else way.for_cpu)):
        return ""
    if dtype not in place.dtypes:
        return f"needs {'a newer GPU' if place.is_gpu else 'a GPU'}"
    need = way.on_gpu(parts, _BYTES[dtype])
    return f"{in_words(need)} {'fits' if need < place.free else 'does not fit'}"


class Choice(NamedTuple):
    """What to call: lines of Python, and what they are chosen for."""

    reason: str
    lines: list[str]


def choose(components: Sequence[Component], among: Sequence[Place], source: str) -> Choice | None:
    """The first way that leaves room for a picture of 1024x1024, on the last of ``among``; None if none does.

    ``source`` is the checkpoint as ``from_pretrained`` takes it.
    """
    place, memory = among[-1], among[0].free
    networks = [part for part in components if part.values]
    dtype, width = place.preferred, _BYTES[place.preferred]
    for parts, without in _with_and_without_t5(networks):
        for room, tiles in ((_PICTURE, False), (_TILED, True)):
            for way in WAYS:
                if not (way.for_gpu if place.is_gpu else way.for_cpu) or way.in_memory(parts, width) > memory:
                    continue
                need = way.on_gpu(parts, width)
                if _peak(way, parts, width, room[width]) < place.free:
                    how = ", ".join(filter(None, (dtype + without, way.name, "tiles" if tiles else "")))
                    reason = f"{how}: {in_words(need)} of weights and about {in_words(room[width])} for 1024x1024"
                    return Choice(
                        f"{reason} in {in_words(place.free)}", _call(way, place, dtype, bool(without), tiles, source)
                    )
    return None


def _peak(way, parts, width, room):
    """Bytes at the largest moment of a call."""
    if not way.one_at_a_time:
        return way.on_gpu(parts, width) + room
    vae = sum(_held(part, width) for part in parts if part.name == "vae")
    return max(way.on_gpu(parts, width) + _BESIDE, vae + room)


def _call(way, place, dtype, without_t5, tiles, source):
    arguments = [repr(source), f"paddle_dtype={dtype!r}"]
    arguments += ["text_encoder_3=None, tokenizer_3=None"] if without_t5 else []
    arguments += [way.loading] if way.loading else []
    index = place.name.partition(":")[2]
    after = [line for line in way.after if place.is_gpu or "{gpu}" not in line]
    device = "cpu" if not place.is_gpu or after else place.name  # what comes after moves it there
    lines = [
        f"paddle.set_device({device!r})",
        f"pipe = ppsd3.DiffusionPipeline.from_pretrained({', '.join(arguments)})",
    ]
    lines += [line.format(gpu=index) for line in after]
    return [*lines, "pipe.enable_vae_tiling()"] if tiles else lines
