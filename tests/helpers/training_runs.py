"""Runs of ``ppsd3 train`` on a tiny model, and what it draws afterwards."""

from ppsd3 import TorchGenerator
from ppsd3.training.configuration import read_configuration


def configuration(model, data, output, *settings):
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


def draw(pipe, **options):
    return pipe(
        "a circle",
        height=64,
        width=64,
        num_inference_steps=2,
        generator=TorchGenerator(0),
        output_type="latent",
        max_sequence_length=5,
        **options,
    ).images.numpy()
