"""Full fine-tuning: all weights of the transformer of `shapes` learn to draw in pastels; EMA weights are the result.

python examples/train_full.py
"""

import argparse
import os

import numpy as np
from PIL import Image

import ppsd3
from ppsd3.shapes import caption, render, sample_scene
from ppsd3.training.configuration import TrainConfiguration, build
from ppsd3.training.runs import TrainingRun

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=120)
parser.add_argument("--pictures", type=int, default=64)
arguments = parser.parse_args()

os.makedirs("pastels", exist_ok=True)
for i in range(arguments.pictures):
    rng = np.random.default_rng(i)
    scene = sample_scene(rng)
    Image.fromarray((127 + render(scene) // 2).astype(np.uint8)).save(f"pastels/{i}.png")
    with open(f"pastels/{i}.txt", "w") as file:
        file.write(caption(scene, rng))

settings = {
    "model": "shapes",
    "output": "full-run",
    "method": "full",
    "data": {"path": "pastels", "resolution": 64, "batch_size": 8},
    "text": {"max_sequence_length": 32, "caption_dropout": 0.1},  # the negative prompt learns the style too
    "training": {"max_steps": arguments.steps, "learning_rate": 3e-4, "ema_decay": 0.95, "warmup_steps": 5},
}
path = TrainingRun(build(TrainConfiguration, settings, __file__)).run()

pastel = ppsd3.SD3Transformer2DModel.from_pretrained(path)
for name, options in {"before": {}, "after": {"transformer": pastel}}.items():
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes", **options)
    image = pipe("a red circle on a navy background", generator=ppsd3.TorchGenerator(0)).images[0]
    image.save(f"train_full_{name}.png")
