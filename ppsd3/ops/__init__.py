"""The only place that knows kernels; everything else calls these names."""

from .attention import attention, causal_bias
from .linear import Linear
from .modulation import gated_residual, layer_norm, layer_norm_modulate, modulate, rms_norm

__all__ = [
    "Linear",
    "attention",
    "causal_bias",
    "gated_residual",
    "layer_norm",
    "layer_norm_modulate",
    "modulate",
    "rms_norm",
]
