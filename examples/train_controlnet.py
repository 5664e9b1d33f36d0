"""ControlNet: a copy of the first blocks of `shapes` learns to follow edges; the transformer stays as it is.

python examples/train_controlnet.py
"""

import argparse
import json
import os

import numpy as np
from PIL import Image, ImageFilter

import ppsd3
from ppsd3.shapes import caption, render, sample_scene
from ppsd3.training.configuration import TrainConfiguration, build
from ppsd3.training.runs import TrainingRun

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=120)
parser.add_argument("--pictures", type=int, default=96)
arguments = parser.parse_args()

os.makedirs("scenes", exist_ok=True)
with open("scenes/metadata.jsonl", "w") as table:
    for i in range(arguments.pictures):
        rng = np.random.default_rng(i)
        scene = sample_scene(rng)
        picture = Image.fromarray(render(scene))
        picture.save(f"scenes/{i}.png")
        picture.filter(ImageFilter.FIND_EDGES).save(f"scenes/edges{i}.png")
        table.write(json.dumps({"file_name": f"{i}.png", "edges": f"edges{i}.png", "text": caption(scene, rng)}) + "\n")

settings = {
    "model": "shapes",
    "output": "controlnet-run",
    "method": "controlnet",
    "data": {"path": "scenes", "control_column": "edges", "resolution": 64, "batch_size": 8},
    "text": {"max_sequence_length": 32},
    "controlnet": {"num_layers": 2},
    "training": {"max_steps": arguments.steps, "learning_rate": 1e-3, "ema_decay": 0.95},
}
net = ppsd3.SD3ControlNetModel.from_pretrained(TrainingRun(build(TrainConfiguration, settings, __file__)).run())

pipe = ppsd3.StableDiffusion3ControlNetPipeline.from_pretrained("shapes", controlnet=net)
edges = Image.open("scenes/edges0.png")
image = pipe("a red circle", control_image=edges, generator=ppsd3.TorchGenerator(0)).images[0]
image.save("train_controlnet.png")
