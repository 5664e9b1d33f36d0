"""Activations of the networks."""

from __future__ import annotations

from functools import partial

import paddle.nn.functional as F
from paddle import Tensor

from . import onednn
from .dispatch import native, onednn as by_onednn, operation
from .native import activations as kernels


@operation(native(kernels.gelu), by_onednn(partial(onednn.eltwise, name="gelu_tanh"), gradients=False))
def gelu(x: Tensor) -> Tensor:
    """GELU with the tanh approximation: ``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``."""
    return F.gelu(x, approximate=True)


@operation(by_onednn(partial(onednn.eltwise, name="gelu_erf"), gradients=False))
def exact_gelu(x: Tensor) -> Tensor:
    """GELU by the error function: ``x / 2 (1 + erf(x / sqrt(2)))``."""
    return F.gelu(x)


@operation(by_onednn(partial(onednn.eltwise, name="swish", alpha=1.702), gradients=False))
def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``, CLIP-L's own approximation of GELU."""
    return x * F.sigmoid(1.702 * x)
