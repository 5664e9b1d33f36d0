"""Seconds a step of a transformer with random weights, eager and compiled, and torch's beside it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import util
from pathlib import Path
from typing import Any

import paddle

from ...models import SD3Transformer2DModel
from ...utils.errors import PPSD3Error

SIZES = (512, 1024)
TEXT_TOKENS = 333
_WARM_UP, _TIMED = 3, 10
_BESIDE = Path(__file__).with_name("torch_step.py")
_LONGEST = 240  # seconds for torch's side, whose compiler is slow


class TorchFailed(PPSD3Error):
    """The side of torch ended with an error."""


class Steps:
    """Steps with guidance (a batch of two) of a network that is built once for all sizes."""

    def __init__(self, config: Mapping[str, Any], dtype: str) -> None:
        self.config, self.dtype = config, dtype

    @functools.cached_property
    def network(self) -> SD3Transformer2DModel:
        """Built where Paddle computes at present."""
        default = paddle.get_default_dtype()
        paddle.set_default_dtype(
            getattr(paddle, self.dtype)
        )  # in which weights are drawn: in float32 they might not fit
        try:
            network = SD3Transformer2DModel(**self.config)
        finally:
            paddle.set_default_dtype(default)
        network.eval()
        return network

    def build(self) -> dict[str, Any]:
        """Builds the network."""
        return {"parameters": self.network.num_parameters()}

    def seconds(self, size: int) -> float:
        """Of one step at ``size`` pixels a side."""
        dtype = getattr(paddle, self.dtype)
        latents = paddle.randn([1, self.config["in_channels"], size // 8, size // 8]).astype(dtype)
        texts = paddle.randn([2, TEXT_TOKENS, self.config["joint_attention_dim"]]).astype(dtype)
        pooled = paddle.randn([2, self.config["pooled_projection_dim"]]).astype(dtype)
        timesteps = paddle.linspace(1000.0, 30.0, _WARM_UP + _TIMED)
        with paddle.no_grad():
            prepared = self.network.prepare(texts, pooled, timesteps)
            return timed(lambda i: self.network(latents, prepared=prepared[i], return_dict=False))


def timed(step: Callable[[int], Any]) -> float:
    """Seconds of a call of ``step(i)``, after some that are not counted."""
    start = 0.0
    for i in range(_WARM_UP + _TIMED):
        if i == _WARM_UP:
            _wait()
            start = time.perf_counter()
        step(i)
    _wait()
    return (time.perf_counter() - start) / _TIMED


def _wait():
    if paddle.get_device().startswith("gpu"):
        paddle.device.synchronize()


def torch_seconds(config: Mapping[str, Any], dtype: str, size: int, compiled: bool, device: str) -> float | str:
    """The same of diffusers' network, in a process of its own; a sentence where torch or diffusers is missing."""
    missing = [name for name in ("torch", "diffusers") if util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    task = {"config": dict(config), "dtype": dtype, "size": size, "compiled": compiled, "text_tokens": TEXT_TOKENS}
    task.update(device=device.replace("gpu", "cuda"), warm_up=_WARM_UP, timed=_TIMED)
    command = [sys.executable, str(_BESIDE), json.dumps(task)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, check=False)
    if result.returncode:
        raise TorchFailed((result.stderr.strip().splitlines() or ["no message"])[-1])
    return float(result.stdout.split()[-1])
