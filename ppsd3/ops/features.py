"""What this machine can compute with: the only place that tests for it.

A feature is there, or there is a reason why it is not, which ``ppsd3 info`` prints.
"""

from __future__ import annotations

import functools

from . import native, onednn

# Feature -> the native function that a library has where the CPU (or the system) it is built for has the feature.
_FUNCTIONS = {
    "amx": "ppsd3_amx_product",
    "amx_int8": "ppsd3_amx_product_int8",
    "avx512": "ppsd3_strassen",
    "avx512_bf16": "ppsd3_product_bf16",
    "vnni": "ppsd3_product_int8",
    "f16c": "ppsd3_float16_to_float32",
    "pread": "ppsd3_read_floats",
}


@functools.cache
def missing(feature: str) -> str | None:
    """Why this machine lacks a feature, None if it has it. Builds the native library if it has to."""
    if feature == "onednn":
        return onednn.unavailable()
    library, detail = native.load()
    if library is None:
        return detail
    if feature == "kernels":
        return None
    if not hasattr(library, _FUNCTIONS[feature]):
        return f"the kernels are built for a CPU or system without {feature}"
    if feature.startswith("amx") and not library.ppsd3_amx_ready():
        return "the system does not let this process use AMX"
    return None


def has(feature: str) -> bool:
    """Whether this machine has a feature."""
    return missing(feature) is None
