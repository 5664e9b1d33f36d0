"""Compares samplers on the bundled model: distance to the flow's exact solution, and evaluations of the model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .prompts import evaluation_prompts
from .scene import TASKS

# Name -> (class of ppsd3, its configuration, steps). The bundled model has no shift of its own; multistep samplers need
# more of their few steps near noise.
SAMPLERS: dict[str, tuple[str, dict[str, float], int]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}, 28),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}, 14),
    "dpm": ("DPMSolverMultistepScheduler", {"flow_shift": 5.0}, 12),
    "unipc": ("UniPCMultistepScheduler", {"flow_shift": 3.0}, 12),
}
REFERENCE_STEPS = 200


@dataclasses.dataclass
class SamplerDistance:
    """``rmse`` of final latents to those of 200 Euler steps, with ``calls`` of the model for each picture."""

    name: str
    steps: int
    calls: int
    rmse: float


def compare_samplers(
    pipe: Any, count: int = 32, seed: int = 0, batch: int = 8, **settings: Any
) -> list[SamplerDistance]:
    """Draws the same pictures with each of ``SAMPLERS`` and with 200 Euler steps.

    Args:
        pipe: a pipeline; its scheduler is restored at the end.
        count: pictures, of unseen prompts of all six tasks in turn.
        seed: of prompts and noise.
        batch: pictures drawn at once.
        **settings: passed to the pipeline's call, e.g. ``guidance_scale``.
    """
    from .. import schedulers
    from ..utils.random import TorchGenerator

    own = pipe.scheduler
    each = -(-count // len(TASKS))
    by_task = [[text for text, _ in evaluation_prompts(task, each, seed)] for task in TASKS]
    prompts = [text for row in zip(*by_task) for text in row][:count]

    def latents(class_name, config, steps):
        pipe.scheduler = getattr(schedulers, class_name).from_config(own.config, **config)
        rows = []
        for start in range(0, count, batch):
            some = prompts[start : start + batch]
            generators = [TorchGenerator(seed + start + i) for i in range(len(some))]
            options = {"generator": generators, "output_type": "latent", **settings}
            rows.append(pipe(some, num_inference_steps=steps, **options).images.numpy())
        return np.concatenate(rows), pipe.num_timesteps

    try:
        exact, _ = latents("FlowMatchEulerDiscreteScheduler", {}, REFERENCE_STEPS)
        found = []
        for name, (class_name, config, steps) in SAMPLERS.items():
            drawn, calls = latents(class_name, config, steps)
            rmse = float(np.sqrt(np.mean((drawn - exact) ** 2)))
            found.append(SamplerDistance(name, steps, calls, rmse))
        return found
    finally:
        pipe.scheduler = own
