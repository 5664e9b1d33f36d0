"""A tiny model, a folder of pictures and the configuration of a short run, for tests of `ppsd3 train`."""

import json

import numpy as np
from PIL import Image

from ppsd3 import TorchGenerator
from ppsd3.training.configuration import read_configuration

from . import tiny


def write_model(directory):
    """A tiny pipeline in a directory; its path."""
    tiny.make_pipeline().save_pretrained(directory)
    return str(directory)


def write_data(folder):
    """Four pictures with captions and edges; the folder's path."""
    rows = []
    for i in range(4):
        Image.new("RGB", (72, 64), (60 * i, 10, 200)).save(folder / f"{i}.png")
        Image.new("L", (72, 64), 60 * i).save(folder / f"edge{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"a circle number {i}", "edges": f"edge{i}.png"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def configuration(model, data, output, *settings):
    """Of four steps at 64 pixels, with ``settings`` on top."""
    common = [
        f"model={model}",
        f"output={output}",
        f"data.path={data}",
        "data.resolution=64",
        "text.max_sequence_length=5",
        "training.max_steps=4",
        "training.log_every=1",
        "training.save_every=2",
        "training.learning_rate=1e-3",
    ]
    return read_configuration(None, [*common, *settings])


def draw(pipe, prompt="a circle", **options):
    """Latents of a picture."""
    return np.asarray(
        pipe(
            prompt,
            height=64,
            width=64,
            num_inference_steps=2,
            generator=TorchGenerator(0),
            max_sequence_length=5,
            **{"output_type": "latent", **options},
        ).images
    )
