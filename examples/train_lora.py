"""LoRA: teaches `shapes` targets, which it never saw, from six pictures with captions; then draws one.

python examples/train_lora.py
"""

import argparse
import os

from PIL import Image, ImageDraw

import ppsd3
from ppsd3.training.configuration import TrainConfiguration, build
from ppsd3.training.runs import TrainingRun

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=150)

os.makedirs("targets", exist_ok=True)
for i, (colour, background) in enumerate([("red", "white"), ("blue", "white"), ("red", "black")] * 2):
    picture = Image.new("RGB", (64, 64), background)
    for inset in range(0, 20, 5):  # rings, one in the other
        box = [14 + inset - i, 10 + inset + i, 49 - inset - i, 45 - inset + i]
        ImageDraw.Draw(picture).ellipse(box, fill=background if inset % 10 else colour)
    picture.save(f"targets/{i}.png")
    with open(f"targets/{i}.txt", "w") as file:
        file.write(f"a {colour} target on a {background} background")

settings = {
    "model": "shapes",
    "output": "lora-run",
    "data": {"path": "targets", "resolution": 64, "batch_size": 6},
    "text": {"max_sequence_length": 32},
    "lora": {"rank": 16, "train_text_encoders": True},
    "training": {"max_steps": parser.parse_args().steps, "learning_rate": 2e-3, "save_every": 50},
}
print(TrainingRun(build(TrainConfiguration, settings, __file__)).run())  # run again with more steps, it goes on

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
pipe.load_lora_weights("lora-run")
prompt = "a blue target on a black background"
pipe(prompt, generator=ppsd3.TorchGenerator(0)).images[0].save("train_lora.png")
