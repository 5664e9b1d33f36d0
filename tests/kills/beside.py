"""A reader in a loop beside a writer in a loop, in two processes: ``python beside.py KIND DIRECTORY SECONDS``.

KIND is "model" or "pipeline", and " in place" after it for a directory that keeps its place. Everything that is saved
holds one of two numbers in all of its weights and configurations, and so must everything that is read.
"""

import os
import signal
import sys
import time

import numpy as np
from helpers import tiny

import ppsd3


def writer(kind, target):
    """A function that saves a number."""
    pipe = tiny.make_pipeline()
    if kind.startswith("model"):
        networks, what = [pipe.vae], pipe.vae
    else:
        networks, what = [pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3], pipe

    def save(value):
        for network in networks:
            for parameter in network.parameters():
                parameter.set_value(np.full(parameter.shape, value, "float32"))
        pipe.vae.register_to_config(scaling_factor=value)
        pipe.scheduler.register_to_config(shift=value)
        what.save_pretrained(target, max_shard_size=20_000 if value == 2 else "1GB")

    return save


def read(kind, target):
    """The number that everything holds."""
    if kind.startswith("model"):
        model = ppsd3.AutoencoderKL.from_pretrained(target)
        numbers = {float(value) for p in model.parameters() for value in (p.min(), p.max())}
        numbers.add(model.config.scaling_factor)
    else:
        pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(target)
        networks = [pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3]
        numbers = {float(value) for network in networks for p in network.parameters() for value in (p.min(), p.max())}
        numbers |= {pipe.vae.config.scaling_factor, pipe.scheduler.config.shift}
        part = ppsd3.AutoencoderKL.from_pretrained(target, subfolder="vae")
        numbers_of_part = {float(p.max()) for p in part.parameters()} | {part.config.scaling_factor}
        assert len(numbers_of_part) == 1, f"a mixture of {numbers_of_part}"
    assert len(numbers) == 1, f"a mixture of {numbers}"
    return numbers.pop()


def main(kind, target, seconds):
    save = writer(kind, target)
    save(1.0)
    child = os.fork()
    if not child:
        try:
            if kind.endswith("in place"):
                os.chdir(target)
            while True:
                save(2.0)
                save(1.0)
        finally:
            os._exit(1)
    start, seen = time.monotonic(), []
    try:
        while time.monotonic() < start + float(seconds) or (len(set(seen)) < 2 and len(seen) < 100):
            seen.append(read(kind, target))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert set(seen) == {1.0, 2.0}, f"{len(seen)} reads saw {set(seen)} only"
    assert read(kind, target) in (1.0, 2.0)
    save(1.0)
    assert read(kind, target) == 1.0 and os.listdir(os.path.dirname(target)) == [os.path.basename(target)]
    print(len(seen), "reads")


if __name__ == "__main__":
    main(*sys.argv[1:])
