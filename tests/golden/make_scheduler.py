"""Writes the golden schedules and noise that the default tests compare with: needs torch, diffusers and scipy.

python tests/golden/make_scheduler.py
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch

DATA = Path(__file__).parent.parent / "data"

SIGMAS = np.linspace(1.0, 1 / 6, 6).tolist()
TIMESTEPS = [1000.0, 813.7, 500.0, 250.25, 30.0, 1.5]
CUSTOM = [{"sigmas": SIGMAS}, {"timesteps": TIMESTEPS}, {"sigmas": SIGMAS, "timesteps": TIMESTEPS}]
DYNAMIC = {"use_dynamic_shifting": True}
CASES = [
    *(({"shift": s}, {"num_inference_steps": n}) for s in (1.0, 3.0) for n in (1, 4, 28, 50)),
    *(
        ({"shift": 3.0, f"use_{kind}_sigmas": True}, {"num_inference_steps": n})
        for kind in ("karras", "exponential", "beta")
        for n in (1, 4, 28)
    ),
    *(
        ({**DYNAMIC, "time_shift_type": kind}, {"num_inference_steps": n, "mu": mu})
        for kind in ("exponential", "linear")
        for n in (1, 28)
        for mu in (0.5, 1.15)
    ),
    *(
        ({"shift": 3.0, **end}, {"num_inference_steps": 10})
        for end in ({"shift_terminal": 0.1}, {"invert_sigmas": True}, {"shift_terminal": 0.02, "invert_sigmas": True})
    ),
    *(({"shift": 3.0}, custom) for custom in CUSTOM),
    *(({**DYNAMIC, "shift_terminal": 0.1}, {"mu": 0.8, **custom}) for custom in CUSTOM),
]

# One generator draws all of these, in this order, so that what each draw consumes is tested too.
DRAWS = [
    ([5], "float32"),
    ([1, 4, 4, 4], "float32"),
    ([2], "float16"),
    ([33], "float32"),
    ([20], "bfloat16"),
    ([3, 7], "float64"),
    ([31], "float16"),
    ([640], "float32"),
    ([1], "float64"),
    ([16], "float32"),
]
SEEDS = [0, 42, -1, 2**40 + 5]


def schedules():
    arrays = {"cases": np.array(json.dumps(CASES)), "diffusers": np.array(diffusers.__version__)}
    for i, (config, kwargs) in enumerate(CASES):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
        scheduler.set_timesteps(**kwargs)
        arrays[f"sigmas_{i}"], arrays[f"timesteps_{i}"] = scheduler.sigmas.numpy(), scheduler.timesteps.numpy()
    return arrays


def noise():
    arrays = {
        "draws": np.array(json.dumps(DRAWS)),
        "seeds": np.array(json.dumps(SEEDS)),
        "torch": np.array(torch.__version__),
    }
    for seed in SEEDS:
        generator = torch.Generator("cpu").manual_seed(seed)
        for i, (shape, dtype) in enumerate(DRAWS):
            values = torch.randn(shape, generator=generator, dtype=getattr(torch, dtype))
            arrays[f"{seed}_{i}"] = values.double().numpy()
        arrays[f"{seed}_state"] = generator.get_state().numpy()
    return arrays


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    np.savez_compressed(DATA / "golden_scheduler.npz", **schedules())
    np.savez_compressed(DATA / "golden_scheduler_noise.npz", **noise())
