"""A picture in two steps, compared with the one that it has to be.

``self_test.png`` is what the bundled model draws on a CPU in float32; ``tests/golden/make_self_test.py`` makes it again
when the model changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...utils import gpu
from ...utils.device import usable_device
from ...utils.errors import InputError
from .findings import Finding

MODEL = "shapes"
GOLDEN = Path(__file__).with_name("self_test.png")
SETTINGS: dict[str, Any] = {
    "prompt": "a red circle to the left of a blue square",
    "negative_prompt": "",
    "num_inference_steps": 2,
    "guidance_scale": 4.5,
    "height": 64,
    "width": 64,
}
# Root of the mean square of the differences, of 255, that a picture may have. Rounding to a PNG costs 0.3; the rest is
# for arithmetic in 16 bits, and for TF32's products on GPUs.
TOLERANCE = {"float32": 1.0, "float16": 1.5, "bfloat16": 4.0}


def draw(device: str | None) -> Iterator[Finding]:
    """A finding for each dtype that ``device`` (None: Paddle's own choice) computes in."""
    import paddle

    try:
        name = paddle.get_device() if device is None else usable_device(device)
        gpu.require_code(name)
    except InputError as error:
        yield Finding("self_test", "test picture", "not drawn", "wrong", str(error))
        return
    before = paddle.get_device()
    try:
        paddle.set_device(name)
        for dtype in gpu.dtypes_of(name):
            yield _compared(name, dtype)
    finally:
        paddle.set_device(before)


def _compared(device, dtype):
    key, what = f"self_test.{dtype}", f"test picture on {device} in {dtype}"
    start = time.perf_counter()
    try:
        picture = picture_of(dtype)
    except Exception as error:  # noqa: BLE001, whatever fails is the finding
        state = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Finding(key, what, f"failed: {state[-500:]}", "wrong", _report(device))
    seconds = time.perf_counter() - start
    from PIL import Image

    difference = float(np.sqrt(np.mean((255 * picture - np.asarray(Image.open(GOLDEN), "float32")) ** 2)))
    state = f"{difference:.2f} of 255 from what it has to be (at most {TOLERANCE[dtype]}), {seconds:.1f} s"
    right = difference <= TOLERANCE[dtype]  # NaN is not
    value = {"difference": difference if np.isfinite(difference) else None, "seconds": round(seconds, 2)}
    return Finding(key, what, state, "ok" if right else "wrong", "" if right else _report(device), value)


def _report(device):
    if device.startswith("cpu"):
        return "See whether PPSD3_KERNELS=reference makes it right; report it with what `ppsd3 doctor --json` prints."
    return f"Run `ppsd3 doctor --gpu-report report.json --device {device}` and attach the file to an issue."


def picture_of(dtype: str) -> np.ndarray:
    """The picture that is drawn now where Paddle computes, [64, 64, 3] in [0, 1]."""
    from ...pipelines import StableDiffusion3Pipeline
    from ...utils.random import TorchGenerator

    pipe = StableDiffusion3Pipeline.from_pretrained(MODEL, paddle_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe(**SETTINGS, generator=TorchGenerator(0), output_type="np").images[0]
