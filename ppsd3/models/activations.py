"""Activations by the names that diffusers and ppdiffusers give them, and the first layers of feed-forwards."""

from __future__ import annotations

from functools import partial
from typing import Callable

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..ops import Linear, exact_gelu, linear_gelu, quick_gelu
from ..utils.checking import shown
from ..utils.errors import ConfigError


class FP32SiLU(nn.Layer):
    """SiLU computed in float32: any shape and dtype, which stay."""

    def forward(self, inputs: paddle.Tensor) -> paddle.Tensor:
        return F.silu(inputs.astype("float32")).astype(inputs.dtype)


class GELU(nn.Layer):
    """Linear projection followed by GELU: ``[..., dim_in] -> [..., dim_out]``.

    Args:
        dim_in, dim_out: widths.
        approximate: ``"tanh"`` for the tanh approximation, as SD3 has it; ``"none"`` for the error function.
    """

    def __init__(self, dim_in: int, dim_out: int, approximate: str = "none") -> None:
        super().__init__()
        self.proj = Linear(dim_in, dim_out)
        self.approximate = approximate
        self._after = linear_gelu if approximate == "tanh" else _exact_gelu_after

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        return self._after(hidden_states, self.proj)


def _exact_gelu_after(x, layer):
    return exact_gelu(layer(x))


class GEGLU(nn.Layer):
    """Half of a projection, gated by GELU of the other half (Shazeer, 2020): ``[..., dim_in] -> [..., dim_out]``."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = Linear(dim_in, 2 * dim_out)

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        hidden_states, gate = self.proj(hidden_states).chunk(2, axis=-1)
        return hidden_states * exact_gelu(gate)


class ApproximateGELU(nn.Layer):
    """Linear projection followed by ``x * sigmoid(1.702 x)``: ``[..., dim_in] -> [..., dim_out]``."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = Linear(dim_in, dim_out)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return quick_gelu(self.proj(x))


_ACTIVATIONS: dict[str, Callable[[], nn.Layer]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate=True),
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "silu": nn.Silu,
    "silu_fp32": FP32SiLU,
    "swish": nn.Silu,
}

# ``(dim_in, dim_out) -> layer``
_PROJECTIONS: dict[str, Callable[[int, int], nn.Layer]] = {
    "geglu": GEGLU,
    "geglu-approximate": ApproximateGELU,
    "gelu": GELU,
    "gelu-approximate": partial(GELU, approximate="tanh"),
}


def get_activation(act_fn: str) -> nn.Layer:
    """The activation of that name, in capitals or not.

    Raises:
        ConfigError: there is none; the message lists the names.
    """
    return _named(_ACTIVATIONS, "act_fn", act_fn)()


def get_projection(activation_fn: str, dim_in: int, dim_out: int) -> nn.Layer:
    """The first layer of a feed-forward: projection and activation, ``[..., dim_in] -> [..., dim_out]``.

    Raises:
        ConfigError: there is no ``activation_fn`` of that name; the message lists the names.
    """
    return _named(_PROJECTIONS, "activation_fn", activation_fn)(dim_in, dim_out)


def _named(table, argument, name):
    if name.lower() not in table:
        raise ConfigError(f"{argument} is {shown(name)}; it can be {', '.join(map(repr, table))}.")
    return table[name.lower()]
