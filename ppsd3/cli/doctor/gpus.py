"""The driver, the cards, and whether this build of Paddle has code for them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ...utils import gpu
from ...utils.gpu import Card, GpuBuild, dotted, how_to_install, lacks_code
from ...utils.sizes import in_words
from .findings import Finding

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def look() -> Iterator[Finding]:
    """What there is of GPUs. That there is none is a fault only where Paddle was installed for one."""
    build, cards = gpu.build(), gpu.cards()
    version, supported = gpu.driver()
    if build.cuda is None:
        yield from _on_a_cpu_build(version or supported)
        return
    yield _code(build)
    yield _driver(build, version, supported)
    yield _cudnn(build)
    if not cards:
        yield _no_card(driver=version or supported)
    for card in cards:
        yield _card(card, build)


def _on_a_cpu_build(driver):
    if driver:
        remedy = f"To use it: pip uninstall paddlepaddle. {how_to_install()}"
        yield Finding("gpu", "GPU", "there is an NVIDIA driver, and this Paddle is built for the CPU", "note", remedy)
    else:
        yield Finding("gpu", "GPU", "none, and this Paddle is built for the CPU")


def _code(build):
    if build.capabilities is None:
        state = f"Paddle {build.version} does not say which cards it has code for; a self-test will tell"
        return Finding("gpu.code", "code for GPUs", state, "note")
    have = [dotted(capability) for capability in build.capabilities]
    return Finding("gpu.code", "code for GPUs", f"compute capability {', '.join(have)}", value=have)


def _driver(build, version, supported):
    what = "NVIDIA driver"
    if not version and supported is None:
        remedy = "Install NVIDIA's driver; start a container with the GPUs, e.g. `docker run --gpus all`."
        return Finding("gpu.driver", what, "not found", "wrong", remedy)
    state = version or "there"
    if supported is not None:
        state += f", for CUDA up to {dotted(supported)}"
        needed = gpu.version_numbers(build.cuda or "")[:2]
        if supported[0] < needed[0]:
            remedy = "Update the driver, or install a Paddle that is built for an older CUDA."
            return Finding("gpu.driver", what, f"{state}; Paddle needs CUDA {build.cuda}", "wrong", remedy, version)
    return Finding("gpu.driver", what, state, value=version)


def _cudnn(build: GpuBuild) -> Finding:
    loaded = gpu.loaded_cudnn()
    built = gpu.version_numbers(build.cudnn or "")[:1]
    remedy = (
        f"Install cuDNN {'.'.join(map(str, built))} for CUDA {build.cuda}, and name its directory in LD_LIBRARY_PATH; "
        "the builds on Paddle's own index (3.0 and later) bring theirs along."
    )
    if loaded is None:
        return Finding("gpu.cudnn", "cuDNN", "not found", "wrong", remedy)
    if built and gpu.version_numbers(loaded)[:1] != built:
        return Finding(
            "gpu.cudnn", "cuDNN", f"{loaded}, and Paddle is built with {build.cudnn}", "wrong", remedy, loaded
        )
    return Finding("gpu.cudnn", "cuDNN", loaded, value=loaded)


def _no_card(driver):
    hidden = os.environ.get(_VISIBLE)
    if driver and hidden is not None:
        remedy = f"{_VISIBLE} is {hidden!r}: unset it, or name a card in it, e.g. 0."
    elif driver:
        remedy = "See whether `nvidia-smi` lists a card; start a container with the GPUs, e.g. `docker run --gpus all`."
    else:
        remedy = (
            "Paddle sees cards once the driver is there. To compute on the CPU, pip uninstall paddlepaddle-gpu and "
        )
        remedy += "install paddlepaddle."
    return Finding("gpu", "GPU", "this Paddle is built for GPUs and sees none", "wrong", remedy, [])


def _card(card: Card, build: GpuBuild) -> Finding:
    value = {"name": card.name, "capability": dotted(card.capability), "memory": card.memory}
    lack = lacks_code(card, build)
    if lack is not None:
        return Finding(f"gpu.{card.index}", "GPU", lack, "wrong", how_to_install(card), value)
    state = f"{card}, {in_words(card.memory)}"
    if card.capability < gpu.BFLOAT16:
        state += "; it has no bfloat16 and no flash attention"
        return Finding(f"gpu.{card.index}", "GPU", state, "note", "Use float16.", value)
    return Finding(f"gpu.{card.index}", "GPU", state, value=value)
