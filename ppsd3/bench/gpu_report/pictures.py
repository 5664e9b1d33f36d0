"""Pictures on a device in every way that there is, beside the CPU's in float32."""

from __future__ import annotations

import collections
import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ...pipelines import StableDiffusion3Pipeline
from ...pipelines.stable_diffusion_3 import guidance, step_caching
from ...utils import gpu
from ...utils.random import TorchGenerator
from ...utils.types import PathLike
from .report import Report

_PACKAGE = Path(__file__).parents[2]
_PROMPTS = ("a red circle to the left of a blue square", "a green ring")
_SCALE = 4.5
_FEW, _MORE = 2, 4  # steps between which host reads are counted
_READS = ("numpy", "item", "cpu", "tolist")  # methods of a tensor that wait for its device

GUIDANCES: dict[str, Callable[[], guidance.Guidance]] = {
    "CFG-Zero*": lambda: guidance.ClassifierFreeZeroStarGuidance(_SCALE),
    "APG": lambda: guidance.AdaptiveProjectedGuidance(_SCALE, eta=0.0),
    "rescale": lambda: guidance.GuidanceRescale(_SCALE),
    "PAG": lambda: guidance.PerturbedAttentionGuidance(_SCALE, [1]),
    "skip layers": lambda: guidance.SkipLayerGuidance(_SCALE, [1], start=0.0, stop=1.0),
    "interval": lambda: guidance.GuidanceInterval(_SCALE, stop=0.5),
}
CACHES: dict[str, Callable[[], step_caching.StepCache]] = {
    "Taylor": step_caching.TaylorCache,
    "first block": step_caching.FirstBlockCache,
    "easy": step_caching.EasyCache,
}


class Pictures:
    """Draws with one checkpoint on one device.

    Args:
        model: the checkpoint.
        device: Paddle's name of the device, e.g. "gpu:0".
        half: the 16-bit dtype of its sections; "float32" on devices that compute in nothing else.
        size: pixels a side.
    """

    def __init__(self, model: PathLike, device: str, half: str, size: int = 128, steps: int = 8) -> None:
        self.model, self.device, self.half = model, device, half
        self._size, self._steps = size, steps

    def load(self, dtype: Any = "float32", device: str | None = None, **options: Any) -> StableDiffusion3Pipeline:
        """The pipeline, read to ``device`` (default: this one), where Paddle computes from then on."""
        paddle.set_device(device or self.device)
        pipe = StableDiffusion3Pipeline.from_pretrained(self.model, paddle_dtype=dtype, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, pipe: StableDiffusion3Pipeline, **options: Any) -> np.ndarray:
        """Two pictures, [2, H, W, 3] in [0, 1]."""
        options = {"guidance_scale": _SCALE, "num_inference_steps": self._steps, **options}
        size = {"height": self._size, "width": self._size}
        generator = TorchGenerator(3)
        return pipe(
            list(_PROMPTS), negative_prompt="blur", output_type="np", generator=generator, **size, **options
        ).images

    @functools.cached_property
    def on_cpu(self) -> np.ndarray:
        """The pictures that all others are compared with."""
        return self.draw(self.load(device="cpu"))

    def compared(self, pictures: np.ndarray, with_these: np.ndarray | None = None) -> dict[str, Any]:
        """How far pictures are from the CPU's, in 255ths."""
        difference = np.abs(pictures - (self.on_cpu if with_these is None else with_these)) * 255
        rmse = float(np.sqrt(np.mean(difference**2)))
        return {"finite": bool(np.isfinite(pictures).all()), "rmse": rmse, "max": float(difference.max())}

    # ------------------------------------------------------------------------------------------------------- sections

    def offloaded(self, method: str, dtype: str) -> dict[str, Any]:
        """Under one kind of offloading: peak memory, and what is left on the device afterwards."""
        pipe = self.load(dtype, "cpu")
        getattr(pipe, method)(device=self.device)
        with peak_memory(self.device) as memory:
            pictures = self.draw(pipe)
        return {**self.compared(pictures), **memory}

    def whole(self, dtype: Any) -> dict[str, Any]:
        """All networks on the device."""
        with peak_memory(self.device) as memory:
            pictures = self.draw(self.load(dtype))
        return {**self.compared(pictures), **memory}

    def moved(self) -> dict[str, Any]:
        """Read to the CPU, moved by ``to``."""
        return self.compared(self.draw(self.load(device="cpu").to(self.device)))

    def host_reads(self) -> dict[str, Any]:
        """How often the host waits for a tensor: per call, and for each further step, by the line that does."""
        pipe = self.load(self.half)
        counts = []
        for steps in (_FEW, _MORE):
            with counted_reads() as reads:
                self.draw(pipe, num_inference_steps=steps)
            counts.append(reads)
        few, more = counts
        each = {line: (count - few[line]) / (_MORE - _FEW) for line, count in more.items() if count > few[line]}
        return {"per call": dict(few), "per step": each}

    def guided(self, kind: guidance.Guidance) -> dict[str, Any]:
        """Beside the same guidance in float32 on the CPU."""
        wanted = self.draw(self.load(device="cpu"), guidance=kind)
        return self.compared(self.draw(self.load(self.half), guidance=kind), wanted)

    def cached(self, cache: step_caching.StepCache) -> dict[str, Any]:
        """Beside the picture without a cache: some difference is meant."""
        pipe = self.load(self.half)
        pipe.enable_cache(cache)
        return self.compared(self.draw(pipe))

    def changed(self, change: Callable[[StableDiffusion3Pipeline], Any], **options: Any) -> dict[str, Any]:
        """After ``change(pipe)``."""
        pipe = self.load(self.half, **options)
        change(pipe)
        return self.compared(self.draw(pipe))

    def several(self) -> dict[str, Any]:
        """Two pictures of each prompt."""
        pictures = self.draw(self.load(self.half), num_images_per_prompt=2)
        return {"shape": list(pictures.shape), "finite": bool(np.isfinite(pictures).all())}


def report_pictures(report: Report, pictures: Pictures) -> None:
    """All sections. What needs least memory comes first, for devices that cannot forget a peak."""
    half, dtypes = pictures.half, gpu.dtypes_of(pictures.device)
    report.section("picture on the CPU", lambda: {"shape": list(pictures.on_cpu.shape)})
    if pictures.device != "cpu":
        for dtype in dict.fromkeys((half, "float32")):
            for kind in ("sequential", "model"):
                name = f"{kind} offload, {dtype}"
                report.section(name, functools.partial(pictures.offloaded, f"enable_{kind}_cpu_offload", dtype))
    on_demand = functools.partial(pictures.changed, lambda pipe: None, load_components="on_demand")
    report.section(f"on demand, {half}", on_demand)
    for dtype in dtypes:
        report.section(f"picture, {dtype}", functools.partial(pictures.whole, dtype))
    report.section("moved by to()", pictures.moved)
    mixed = {"vae": "float32", "default": half}
    report.section(f"VAE in float32, {half}", functools.partial(pictures.whole, mixed))
    report.section(f"host reads, {half}", pictures.host_reads)
    report.section(f"two pictures a prompt, {half}", pictures.several)
    for name, make in GUIDANCES.items():
        report.section(f"guidance {name}, {half}", lambda make=make: pictures.guided(make()))
    for name, make in CACHES.items():
        report.section(f"cache {name}, {half}", lambda make=make: pictures.cached(make()))
    changes: dict[str, Callable[[StableDiffusion3Pipeline], Any]] = {
        "tiles": lambda pipe: pipe.enable_vae_tiling(tile_sample_min_size=64),
        "compiled": lambda pipe: pipe.compile(),
        "int8": lambda pipe: pipe.quantize("int8"),
    }
    for name, change in changes.items():
        report.section(f"{name}, {half}", functools.partial(pictures.changed, change))


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[dict[str, Any]]:
    """Fills a dict with the most bytes that tensors had on a GPU within the block, and with those there after it.

    Paddle 2.6 cannot forget an earlier peak: where the number is that of the block, ``peak_is_of_section`` is True. Of
    other devices nothing is known.
    """
    found: dict[str, Any] = {}
    if not device.startswith("gpu"):
        yield found
        return
    cuda = paddle.device.cuda
    cuda.empty_cache()
    forget = getattr(cuda, "reset_max_memory_allocated", None)  # came after 2.6
    before = cuda.max_memory_allocated()
    if forget is not None:
        forget()
    yield found
    cuda.synchronize()
    peak = cuda.max_memory_allocated()
    found.update(peak=peak, after=cuda.memory_allocated(), peak_is_of_section=forget is not None or peak > before)


@contextlib.contextmanager
def counted_reads() -> Iterator[collections.Counter[str]]:
    """Counts reads of tensors that are not on the CPU, by the line of this package that reads."""
    counts: collections.Counter[str] = collections.Counter()
    methods = {name: getattr(paddle.Tensor, name) for name in _READS}

    def counting(method):
        @functools.wraps(method)
        def read(tensor, *arguments, **options):
            if not tensor.place.is_cpu_place():
                counts[_reader()] += 1
            return method(tensor, *arguments, **options)

        return read

    try:
        for name, method in methods.items():
            setattr(paddle.Tensor, name, counting(method))
        yield counts
    finally:
        for name, method in methods.items():
            setattr(paddle.Tensor, name, method)


def _reader():
    here = Path(__file__)
    for frame in reversed(traceback.extract_stack(limit=40)):
        path = Path(frame.filename)
        if _PACKAGE in path.parents and path != here:
            return f"{path.relative_to(_PACKAGE).as_posix()}:{frame.lineno}"
    return "elsewhere"
