"""Activations of the networks. On a CPU without a compiler, and for those that have no kernel of ours, oneDNN's."""

import paddle.nn.functional as F

from . import native, onednn
from .native import interface as kernels


def gelu(x):
    """GELU with the tanh approximation: ``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``."""
    if native.usable(x):
        return kernels.gelu(x)
    return onednn.eltwise(x, "gelu_tanh") if onednn.usable_forward(x) else F.gelu(x, approximate=True)


def exact_gelu(x):
    """GELU by the error function: ``x / 2 (1 + erf(x / sqrt(2)))``."""
    return onednn.eltwise(x, "gelu_erf") if onednn.usable_forward(x) else F.gelu(x)


def quick_gelu(x):
    """``x * sigmoid(1.702 x)``, CLIP-L's own approximation of GELU."""
    return onednn.eltwise(x, "swish", 1.702) if onednn.usable_forward(x) else x * F.sigmoid(1.702 * x)
