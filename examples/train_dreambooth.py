"""DreamBooth: four pictures of one thing get a word of their own, and pictures of its class keep the class as it was.

python examples/train_dreambooth.py
"""

import argparse
import os

from PIL import Image, ImageDraw

import ppsd3
from ppsd3.training.configuration import TrainConfiguration, build
from ppsd3.training.runs import TrainingRun

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--class-images", type=int, default=8)
arguments = parser.parse_args()

os.makedirs("sks", exist_ok=True)
for i in range(4):  # a circle, half red and half blue
    picture, box = Image.new("RGB", (64, 64), "white"), [12 + 2 * i, 16 - i, 44 + 2 * i, 48 - i]
    ImageDraw.Draw(picture).pieslice(box, 0, 180, fill="blue")
    ImageDraw.Draw(picture).pieslice(box, 180, 360, fill="red")
    picture.save(f"sks/{i}.png")

settings = {
    "model": "shapes",
    "output": "dreambooth-run",
    "method": "lora",  # or "full"
    "data": {
        "path": "sks",
        "resolution": 64,
        "batch_size": 4,
        "instance_prompt": "a sks circle on a white background",
        "class_prompt": "a circle on a white background",  # drawn first, into dreambooth-run/class_images
        "class_images": arguments.class_images,
    },
    "text": {"max_sequence_length": 32},
    "lora": {"rank": 16, "train_text_encoders": True},
    "training": {"max_steps": arguments.steps, "learning_rate": 2e-3},
}
print(TrainingRun(build(TrainConfiguration, settings, __file__)).run())

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
pipe.load_lora_weights("dreambooth-run")
for name in ("sks circle", "red circle"):
    image = pipe(f"a {name} on a white background", generator=ppsd3.TorchGenerator(0)).images[0]
    image.save(f"dreambooth_{name.partition(' ')[0]}.png")
