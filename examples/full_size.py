"""Loads and runs SD3-medium's transformer at its true size with random weights, and compares it with diffusers.

    python examples/full_size.py [--directory DIRECTORY]

It shows that loading peaks at no more than 1.15 times the bytes that the loaded model needs, and that one denoising
step of a 512x512 image agrees with diffusers in fp32 to 1e-4. Needs the extra [parity], Linux, 5 GB of disk and 10 GB
of memory; takes a few minutes. Each part runs in its own process, so that only one model is in memory at a time.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

CONFIG = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    num_layers=24,
    attention_head_dim=64,
    num_attention_heads=24,
    joint_attention_dim=4096,
    caption_projection_dim=1536,
    pooled_projection_dim=2048,
    out_channels=16,
    pos_embed_max_size=192,
)
SIDE = 512 // 8  # latent cells
TEXT_TOKENS = 77 + 256
STEPS, STEP = 28, 10  # the step that is taken, of how many
MEMORY_BAR, STEP_BAR = 1.15, 1e-4


def make(directory):
    """Writes the checkpoint with diffusers: random weights, fp16, in shards; and the inputs of the step."""
    import diffusers
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)  # so that no fp32 model is made on the way
    model = diffusers.SD3Transformer2DModel(**CONFIG)
    model.pos_embed.half()  # its table is made in fp32
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:  # torch's own are so small that the blocks hardly change what passes through them
                weight.normal_(0, weight[0].numel() ** -0.5)
    model.save_pretrained(directory, max_shard_size="1GB")
    rng = np.random.default_rng(0)
    shapes = {
        "latents": (1, CONFIG["in_channels"], SIDE, SIDE),
        "text": (1, TEXT_TOKENS, CONFIG["joint_attention_dim"]),
        "pooled": (1, CONFIG["pooled_projection_dim"]),
    }
    arrays = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    np.savez(os.path.join(directory, "inputs.npz"), **arrays)
    return {"shards": sum(name.endswith(".safetensors") for name in os.listdir(directory))}


def load(directory, dtype):
    """Peak resident set of loading in ``dtype`` and then reading every weight once, above what imports take."""
    import paddle

    from ppsd3 import SD3Transformer2DModel

    paddle.matmul(paddle.ones([8, 8]), paddle.ones([8, 8]))  # Paddle sets itself up
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts anew
    start = time.perf_counter()
    model = SD3Transformer2DModel.from_pretrained(directory, paddle_dtype=dtype)
    seconds, loaded = time.perf_counter() - start, status("VmHWM") - before
    tensors = model.state_dict().values()
    for tensor in tensors:  # a mapped weight becomes resident when it is read
        assert np.isfinite(tensor.numpy()).all()
    needed = sum(tensor.numpy().nbytes for tensor in tensors)
    return {"needed": needed, "loaded": loaded, "peak": status("VmHWM") - before, "seconds": seconds}


def ours(directory):
    """One step in ppsd3, fp32."""
    import paddle

    from ppsd3 import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    model = SD3Transformer2DModel.from_pretrained(directory, paddle_dtype="float32")
    with paddle.no_grad():
        return step(directory, "ours", model, FlowMatchEulerDiscreteScheduler(shift=3.0), paddle.to_tensor)


def theirs(directory):
    """One step in diffusers, fp32."""
    import diffusers
    import torch

    model = diffusers.SD3Transformer2DModel.from_pretrained(directory, torch_dtype=torch.float32).eval()
    with torch.no_grad():
        return step(directory, "theirs", model, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), torch.from_numpy)


def step(directory, name, model, scheduler, tensor):
    """Velocity and the latents one Euler step on, saved to ``<name>.npz``; the two libraries have the same calls."""
    inputs = {key: tensor(array) for key, array in np.load(os.path.join(directory, "inputs.npz")).items()}
    scheduler.set_timesteps(STEPS)
    timestep = scheduler.timesteps[STEP]
    start = time.perf_counter()
    velocity = model(
        hidden_states=inputs["latents"],
        encoder_hidden_states=inputs["text"],
        pooled_projections=inputs["pooled"],
        timestep=timestep.reshape([1]),
        return_dict=False,
    )[0]
    seconds = time.perf_counter() - start
    latents = scheduler.step(velocity, timestep, inputs["latents"], return_dict=False)[0]
    np.savez(os.path.join(directory, f"{name}.npz"), velocity=velocity.numpy(), latents=latents.numpy())
    return {"seconds": seconds, "peak": status("VmHWM")}


def status(key):
    """Bytes that Linux reports for this process: "VmRSS" is resident now, "VmHWM" was at most."""
    with open("/proc/self/status") as file:
        return int(re.search(rf"{key}:\s+(\d+) kB", file.read()).group(1)) * 1024


def relative_difference(directory, name):
    """max |ours - theirs| / max |theirs| of the array ``name``."""
    a, b = (np.load(os.path.join(directory, f"{side}.npz"))[name] for side in ("ours", "theirs"))
    return float(np.abs(a - b).max() / np.abs(b).max())


def run_alone(part, directory, *arguments):
    """One of the functions above in a fresh process; what it returned."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    code = "import json, sys, full_size as f; print(json.dumps(getattr(f, sys.argv[1])(*sys.argv[2:])))"
    command = [sys.executable, "-W", "ignore", "-c", code, part, directory, *arguments]
    result = subprocess.run(
        command,
        cwd=os.path.dirname(os.path.abspath(__file__)),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"The part {part!r} failed with exit code {result.returncode}; its messages are above.")
    return json.loads(result.stdout.splitlines()[-1])


def measure(directory):
    """Runs all parts in ``directory`` and prints as it goes. dict: figure -> value."""
    figures = {}
    made = run_alone("make", directory)
    print(f"checkpoint: {made['shards']} shards, fp16", flush=True)
    for dtype in ("float16", "float32"):
        found = run_alone("load", directory, dtype)
        figures[f"memory_{dtype}"] = found["peak"] / found["needed"]
        print(
            f"load {dtype}: needs {found['needed'] / 1e9:.2f} GB, peak {found['peak'] / 1e9:.2f} GB "
            f"({figures[f'memory_{dtype}']:.3f} times; {found['loaded'] / 1e9:.2f} GB before the weights are read), "
            f"{found['seconds']:.1f} s",
            flush=True,
        )
    for part in ("ours", "theirs"):
        found = run_alone(part, directory)
        print(f"step, {part}: {found['seconds']:.1f} s, peak {found['peak'] / 1e9:.2f} GB", flush=True)
    for name in ("velocity", "latents"):
        figures[name] = relative_difference(directory, name)
        print(f"{name}: largest difference {figures[name]:.2e} of the largest value", flush=True)
    return figures


def missed(figures):
    """Names of the figures that miss their bar."""
    bars = {name: MEMORY_BAR if name.startswith("memory") else STEP_BAR for name in figures}
    return [name for name, value in figures.items() if not value <= bars[name]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--directory", help="where a directory for the 4.2 GB checkpoint is made, and deleted afterwards"
    )
    directory = tempfile.mkdtemp(prefix="full-size-", dir=parser.parse_args().directory)
    try:
        failures = missed(measure(directory))
    finally:
        shutil.rmtree(directory)
    if failures:
        raise SystemExit(f"Missed: {', '.join(failures)} (bars: memory {MEMORY_BAR}, the rest {STEP_BAR}).")


if __name__ == "__main__":
    main()
