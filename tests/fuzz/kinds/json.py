"""``config.json`` of every class, schedulers' and processors' configurations, and ``model_index.json``."""

from __future__ import annotations

import json

import numpy as np
from helpers import ip_adapters, tiny

from .. import corpus, mutation
from ..case import Case

_SCHEDULERS = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)


class Kind:
    def __init__(self, directory):
        import ppsd3

        self.sources = []  # (directory, file in it, class)
        for name, network in corpus.networks().items():
            network.save_pretrained(directory / name)
            self.sources.append((directory / name, "config.json", type(network)))
        for name in _SCHEDULERS:
            class_ = getattr(ppsd3, name)
            class_().save_pretrained(directory / name)
            self.sources.append((directory / name, "scheduler_config.json", class_))
        processor = ppsd3.SiglipImageProcessor(**ip_adapters.PROCESSOR)
        processor.save_pretrained(directory / "processor")
        self.sources.append((directory / "processor", "preprocessor_config.json", type(processor)))
        tiny.make_pipeline().save_pretrained(directory / "pipeline")
        self.sources += [(directory / "pipeline", "model_index.json", ppsd3.DiffusionPipeline)] * 2

    def case(self, rng, place):
        source, name, class_ = rng.choice(self.sources)
        folder = place / source.name
        corpus.link(source, folder)
        content, keys = mutation.mutated(rng, json.loads((source / name).read_text()))
        corpus.replace(folder / name, mutation.json_text(rng, content))
        shown = {key: content.get(key) for key in keys} if isinstance(content, dict) else content
        names = (str(folder), "set_timesteps", *keys)
        return Case(lambda: _use(class_, folder), names, f"{source.name}/{name}: {shown}")


def _use(class_, folder):
    """Loads what the directory holds and uses it once: a value that is accepted can be used."""
    import paddle

    made = class_.from_pretrained(folder)
    if hasattr(made, "set_timesteps"):
        made.set_timesteps(3)
        sample = paddle.ones([1, 4, 4, 4])
        for timestep in made.timesteps:
            sample = made.step(sample, timestep, sample).prev_sample
    elif class_.__name__ == "SiglipImageProcessor":
        made(np.zeros((8, 8, 3), np.uint8))
    elif class_.__name__ in ("CLIPTextModelWithProjection", "T5EncoderModel"):
        made(paddle.to_tensor([[1, 2, 3]]))
    elif class_.__name__ == "SD3Transformer2DModel":
        size = [1, 4, 8, 8]
        made(paddle.ones(size), paddle.ones([1, 3, 40]), paddle.ones([1, 28]), paddle.to_tensor([5.0]))
    elif class_.__name__ in ("AutoencoderKL", "AutoencoderTiny"):
        made.decode(paddle.ones([1, 4, 4, 4]))
    elif class_.__name__ == "SiglipVisionModel":
        made(paddle.ones([1, 3, 28, 28]))
