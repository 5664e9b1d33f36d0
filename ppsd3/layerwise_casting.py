"""Layerwise casting: weights are stored in 16 bits and cast, layer by layer, when they are used.

Counterpart of diffusers' layerwise casting. All linear layers of a model become :class:`~ppsd3.ops.CastingLinear`;
embedding tables, norms and biases, a few percent of a transformer or text encoder, stay in the compute dtype. What is
saved is an ordinary checkpoint.
"""

from __future__ import annotations

import paddle
from paddle import nn

from .ops import CastingLinear, Linear
from .quantization import is_quantized, replace_layer
from .serialization.tensors import cast, dtype_name, paddle_dtype
from .utils.errors import InputError
from .utils.types import Dtype

STORAGE_DTYPES = ("float16", "bfloat16")


def check_storage_dtype(dtype: Dtype) -> paddle.dtype:
    """``dtype`` as a Paddle dtype. Raises InputError if weights cannot be stored in it."""
    if dtype_name(dtype) not in STORAGE_DTYPES:
        raise InputError(
            f"storage_dtype is {dtype!r}; weights can be held in {' or '.join(STORAGE_DTYPES)}. For int8 use "
            "quantize('int8')."
        )
    return paddle_dtype(dtype)


def cast_layers_(model: nn.Layer, dtype: Dtype, compute_dtype: paddle.dtype | None = None) -> None:
    """Replaces the linear layers of ``model``, one at a time, by layers that store their weights in ``dtype``.

    Args:
        dtype: "float16" or "bfloat16".
        compute_dtype: of layers whose weights are loaded later. Default: the present weights are rounded.

    Raises:
        InputError: another dtype, a quantized model, or one with fused projections or no linear layers.
    """
    dtype, owner = check_storage_dtype(dtype), type(model).__name__
    if is_quantized(model):
        raise InputError(f"This {owner} is in int8, which is smaller already. Load the original to hold it in 16 bits.")
    if any(getattr(layer, "_fused", None) is not None for layer in model.sublayers()):
        raise InputError(f"This {owner} has fused projections, copies of its weights. unfuse_qkv_projections() first.")
    layers = {name: layer for name, layer in model.named_sublayers() if type(layer) is Linear}
    if not layers:
        raise InputError(f"{owner} has no linear layers whose weights could be held in {dtype_name(dtype)}.")
    for name, layer in layers.items():
        if compute_dtype is not None:
            new = CastingLinear.unfilled(layer, dtype, compute_dtype)
        else:
            with paddle.no_grad():
                new = CastingLinear(cast(layer.weight.detach(), dtype), layer.bias, layer.weight.dtype)
        replace_layer(model, name, new)


def storage_dtype_of(model: nn.Layer) -> paddle.dtype | None:
    """The 16-bit dtype in which linear layers of ``model`` store their weights, or None without layerwise casting."""
    return next((layer.weight.dtype for layer in model.sublayers() if isinstance(layer, CastingLinear)), None)


def held_weights(model: nn.Layer) -> set[str]:
    """Names of the weights of ``model`` that layerwise casting stores in 16 bits."""
    return {name + ".weight" for name, layer in model.named_sublayers() if isinstance(layer, CastingLinear)}
