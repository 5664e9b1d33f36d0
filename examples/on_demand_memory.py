"""Draws 512x512 with a model of SD3-medium's true size, T5-XXL included, and records its memory.

    python examples/on_demand_memory.py [--directory DIRECTORY] [--steps N] [--plot memory.png]

Weights are random, in float16 files. `load_components="on_demand"` loads each network when it is used and frees it
afterwards; `storage_dtype="float16"` keeps weights as the file has them and casts them when a layer is used. Needs
Linux, 17 GB of disk and 14 GB of memory; the plot needs matplotlib.
"""

import argparse
import json
import os
import shutil
import tempfile
import threading
import time

BAR = 14e9  # bytes that the run may take at most
NAMES = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")


def make(directory):
    """Writes the checkpoint: random networks of SD3-medium's sizes, the rest from the bundled model."""
    from ppsd3.bench.configurations import CLASSES, MEDIUM
    from ppsd3.bench.weights import write
    from ppsd3.utils.hub import BUNDLED

    for name in NAMES:
        layers = {"transformer": {"num_layers": 24}, "text_encoder_3": {"num_layers": 24}}.get(name, {})
        write(os.path.join(directory, name), name, {**MEDIUM[name], **layers}, "float16")
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler"):
        shutil.copytree(os.path.join(BUNDLED["shapes"], name), os.path.join(directory, name), dirs_exist_ok=True)
    with open(os.path.join(BUNDLED["shapes"], "model_index.json")) as file:
        index = json.load(file)
    assert all(index[name][1] == class_ for name, class_ in CLASSES.items())
    shutil.copy(os.path.join(BUNDLED["shapes"], "model_index.json"), directory)


class MemoryCurve(threading.Thread):
    """Resident memory of this process, some times a second, with the network that was in use."""

    def __init__(self):
        super().__init__(daemon=True)
        self.points, self.stage, self._start = [], "", time.perf_counter()

    def run(self):
        while True:
            with open("/proc/self/statm") as file:
                resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            self.points.append((round(time.perf_counter() - self._start, 2), resident, self.stage))
            time.sleep(0.1)


def draw(directory, steps):
    """One picture; returns the curve."""
    import ppsd3
    from ppsd3.pipelines.residency import OnDemandNetwork

    curve = MemoryCurve()
    curve.start()
    options = {"load_components": "on_demand", "storage_dtype": "float16"}
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(directory, **options)
    resident = OnDemandNetwork.resident

    def named(self):
        curve.stage = self.name
        return resident(self)

    OnDemandNetwork.resident = named
    generator = ppsd3.TorchGenerator(0)
    pipe("a red circle", height=512, width=512, num_inference_steps=steps, generator=generator).images[0]
    return curve.points


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", help="where the checkpoint is, or is made and kept (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--plot", help="save the curve as a picture")
    arguments = parser.parse_args()
    directory = arguments.directory or tempfile.mkdtemp()
    try:
        if os.fork() == 0:  # in a process of its own, whose memory does not count
            make(directory)
            os._exit(0)
        if os.wait()[1]:
            raise SystemExit("The checkpoint could not be made; see above.")
        points = draw(directory, arguments.steps)
    finally:
        if arguments.directory is None:
            shutil.rmtree(directory)
    for stage in dict.fromkeys(stage for _, _, stage in points):
        print(f"{stage or 'start':15} {max(bytes for _, bytes, s in points if s == stage) / 1e9:6.2f} GB")
    peak = max(bytes for _, bytes, _ in points)
    print(f"peak            {peak / 1e9:6.2f} GB in {points[-1][0]:.0f} s; at most {BAR / 1e9:.0f} GB is asked for")
    if arguments.plot:
        plot(points, arguments.plot)
    return 0 if peak <= BAR else 1


def plot(points, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axis = figure.subplots()
    for stage in dict.fromkeys(stage for _, _, stage in points):
        some = [(seconds, bytes / 1e9) for seconds, bytes, s in points if s == stage]
        axis.plot(*zip(*some), label=stage or "start")
    axis.axhline(BAR / 1e9, color="grey", linestyle=":")
    axis.set(xlabel="seconds", ylabel="GB resident", ylim=(0, None))
    axis.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    raise SystemExit(main())
