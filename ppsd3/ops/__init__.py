"""The only place that knows kernels; everything else calls these names."""

from . import sixteen_bit, vision  # noqa: F401 (their operations belong to the table too)
from .activations import exact_gelu, gelu, quick_gelu
from .adapted import AdaptedLinear, AdaptedWeights, adapt, adapter_scale, base_of, own_sublayers, scaled_adapters
from .attention import attention, causal_bias, joint_attention, mask_bias
from .casting import CastingLinear
from .linear import Linear, linear, linear_gelu
from .modulation import (
    AffineLayerNorm,
    LayerNorm,
    gated_residual,
    layer_norm,
    layer_norm_modulate,
    modulate,
    norm_modulate,
    rms_norm,
)
from .quantized import QuantizedLinear, WeightOnlyLinear, shared_input
from .settings import float32_matmul_precision, use_kernels, use_native

__all__ = [
    "AdaptedLinear",
    "AdaptedWeights",
    "AffineLayerNorm",
    "CastingLinear",
    "LayerNorm",
    "Linear",
    "QuantizedLinear",
    "WeightOnlyLinear",
    "adapt",
    "adapter_scale",
    "attention",
    "base_of",
    "causal_bias",
    "exact_gelu",
    "float32_matmul_precision",
    "gated_residual",
    "gelu",
    "joint_attention",
    "layer_norm",
    "layer_norm_modulate",
    "linear",
    "linear_gelu",
    "mask_bias",
    "modulate",
    "norm_modulate",
    "own_sublayers",
    "quick_gelu",
    "rms_norm",
    "scaled_adapters",
    "shared_input",
    "use_kernels",
    "use_native",
]
