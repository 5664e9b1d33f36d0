"""Memory over many pictures."""

import sys

import pytest

from ppsd3 import StableDiffusion3Pipeline, TorchGenerator


def resident():
    """Bytes of this process that are in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.machine
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_two_hundred_pictures_take_the_memory_of_the_first():
    pipe = StableDiffusion3Pipeline.from_pretrained("shapes")
    pipe.set_progress_bar_config(disable=True)

    def draw(count):
        for seed in range(count):
            size = 64 + 16 * (seed % 3)  # sizes change, as a server's requests do
            pipe("two red rings", height=size, width=64, num_inference_steps=2, generator=TorchGenerator(seed))

    draw(12)  # kernels, caches and allocators are there afterwards
    before = resident()
    draw(200)
    assert resident() <= 1.02 * before
