"""What this machine can compute with: the only place that tests for it.

A feature is there, or there is a reason why it is not, which ``ppsd3 info`` prints.
"""

from __future__ import annotations

import functools

import paddle

from ..utils import gpu
from . import native, onednn

# Feature -> the native function that only a library for a CPU (or system) with it has, and its name for the user.
FUNCTIONS = {
    "amx": ("ppsd3_amx_product", "AMX"),
    "amx_int8": ("ppsd3_amx_product_int8", "AMX-INT8"),
    "avx512": ("ppsd3_strassen", "AVX-512"),
    "avx512_bf16": ("ppsd3_product_bf16", "AVX512-BF16"),
    "vnni": ("ppsd3_product_int8", "VNNI"),
    "f16c": ("ppsd3_float16_to_float32", "F16C"),
    "pread": ("ppsd3_read_floats", "pread"),
}

# Feature -> the compute capabilities from, and up to, which a GPU has it, as Paddle's kernels are compiled.
CAPABILITIES = {
    "cuda": ((5, 0), (99, 0)),
    "flash_attention": (gpu.FLASH_ATTENTION, (99, 0)),
    "flash_attention_3": ((9, 0), (9, 0)),
}


def card() -> gpu.Card | None:
    """The card that Paddle takes first; None if there is none, or none of NVIDIA's."""
    return None if paddle.is_compiled_with_rocm() else next(iter(gpu.cards()), None)


def missing(feature: str) -> str | None:
    """Why this machine lacks a feature, None if it has it. Builds the native library if it has to."""
    return _missing_on_gpu(feature, card()) if feature in CAPABILITIES else _missing_on_cpu(feature)


def _missing_on_gpu(feature, card):
    if card is None:
        return "there is no NVIDIA GPU for this Paddle"
    first, last = CAPABILITIES[feature]
    if not first <= card.capability <= last:
        later = "" if first == last else " and later"
        return f"compute capability {gpu.dotted(card.capability)}; made for {gpu.dotted(first)}{later}"
    if feature == "flash_attention_3" and not _has_flag("FLAGS_flash_attn_version"):
        return "not in this Paddle"
    return None


def _has_flag(name):
    try:
        return bool(paddle.get_flags([name]))
    except ValueError:
        return False


@functools.cache
def _missing_on_cpu(feature):
    if feature == "onednn":
        return onednn.unavailable()
    library, detail = native.load()
    if library is None:
        return detail
    if feature == "kernels":
        return None
    function, name = FUNCTIONS[feature]
    if not hasattr(library, function):
        return f"this CPU, or that of PPSD3_TARGET_FLAGS, has no {name}"
    if feature.startswith("amx") and not library.ppsd3_amx_ready():
        return "the system keeps AMX of this CPU to itself"
    return None


def has(feature: str) -> bool:
    """Whether this machine has a feature."""
    return missing(feature) is None
