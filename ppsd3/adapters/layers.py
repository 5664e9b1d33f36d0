"""LoRA and its relatives: what each adds to a linear layer, computed exactly.

==========  ===============================================================  ========================
format      change of the weight W [out, in]                                 class
==========  ===============================================================  ========================
LoRA        ``alpha / r * B A``                                              :class:`LowRank`
DoRA        rows of the changed W are rescaled to the lengths ``m``          any, with ``magnitude``
LoHa        ``alpha / r * (B1 A1) o (B2 A2)``, entry by entry                :class:`LowRank` of rank r * r
LoKr        ``alpha / r * kron(W1, W2)``                                     :class:`Kronecker`
full        ``D``                                                            :class:`Dense`
==========  ===============================================================  ========================

Sources: LoRA, arXiv 2106.09685; DoRA, 2402.09353; LoHa, 2108.06098; LoKr, 2309.14859 (LyCORIS).
"""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..ops import linear
from ..ops.adapted import Adapter, dense_weight
from ..serialization.tensors import dtype_name
from ..utils.paddle_internals import share_memory


class WeightChange(Adapter):
    """A change of the weight by ``scaling * M``; subclasses define M.

    Args:
        scaling: e.g. alpha / r.
        magnitude [out]: lengths to which the rows of the changed weight are rescaled (DoRA).
        bias [out]: added to the output with the same scaling.
    """

    scaling: float
    lora_magnitude_vector: paddle.Tensor | None
    lora_bias: paddle.Tensor | None

    def __init__(
        self, scaling: float = 1.0, magnitude: paddle.Tensor | None = None, bias: paddle.Tensor | None = None
    ) -> None:
        super().__init__()
        self.scaling = float(scaling)
        self.lora_magnitude_vector = None if magnitude is None else _parameter(magnitude)
        self.lora_bias = None if bias is None else _parameter(bias)

    def product(self, x: paddle.Tensor) -> paddle.Tensor:
        """``x M^T``: [..., in] -> [..., out]."""
        raise NotImplementedError

    def matrix(self) -> paddle.Tensor:
        """M [out, in] in float32."""
        raise NotImplementedError

    def added(self, x: paddle.Tensor, y: paddle.Tensor, layer: Any, strength: float) -> paddle.Tensor:
        strength = strength * self.scaling
        change = self.product(x) * strength
        if self.lora_magnitude_vector is not None:
            plain = y if layer.bias is None else y - layer.bias
            with paddle.no_grad():  # no gradient passes through the norm (DoRA, section 4.3)
                norm = _row_norms(dense_weight(layer) + self.matrix() * strength)
            factor = (self.lora_magnitude_vector.astype("float32") / norm).astype(y.dtype)
            change = (factor - 1.0) * plain + factor * change
        return change if self.lora_bias is None else change + self.lora_bias * strength

    def weight_change(self, weight: paddle.Tensor, strength: float) -> paddle.Tensor:
        change = self.matrix() * (strength * self.scaling)
        if self.lora_magnitude_vector is None:
            return change
        whole = weight + change
        return whole * (self.lora_magnitude_vector.astype("float32") / _row_norms(whole)).unsqueeze(1) - weight

    def bias_change(self, strength: float) -> paddle.Tensor | None:
        return None if self.lora_bias is None else self.lora_bias.astype("float32") * (strength * self.scaling)

    def extra_repr(self) -> str:
        return f"scaling={self.scaling:g}" + ("" if self.lora_magnitude_vector is None else ", dora")


class LowRank(WeightChange):
    """``M = B A``.

    Args:
        down [r, in], up [out, r]: A and B, the parameters ``lora_A`` and ``lora_B``.
        **options: of :class:`WeightChange`.
    """

    def __init__(self, down: paddle.Tensor, up: paddle.Tensor, **options: Any) -> None:
        super().__init__(**options)
        self.dropout = 0.0  # part of the input that is left out while training
        self.lora_A: paddle.Tensor = _parameter(down)
        self.lora_B: paddle.Tensor = _parameter(up)

    @property
    def rank(self) -> int:
        """r."""
        return self.lora_A.shape[0]

    def product(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.dropout:
            x = F.dropout(x, self.dropout, training=self.training)
        return linear(linear(x, self.lora_A), self.lora_B)

    def matrix(self) -> paddle.Tensor:
        return paddle.matmul(self.lora_B.astype("float32"), self.lora_A.astype("float32"))


class Kronecker(WeightChange):
    """``M = kron(first, second)``, applied without computing M: ``first X second^T``.

    Args:
        first [a, b], second [c, d]: a * c is ``out``, b * d is ``in``; ``lokr_w1`` and ``lokr_w2``.
        **options: of :class:`WeightChange`.
    """

    lokr_w1: paddle.Tensor
    lokr_w2: paddle.Tensor

    def __init__(self, first: paddle.Tensor, second: paddle.Tensor, **options: Any) -> None:
        super().__init__(**options)
        self.lokr_w1, self.lokr_w2 = _parameter(first), _parameter(second)

    def product(self, x: paddle.Tensor) -> paddle.Tensor:
        (a, b), (c, d) = self.lokr_w1.shape, self.lokr_w2.shape
        inner = linear(x.reshape([*x.shape[:-1], b, d]), self.lokr_w2)  # [..., b, c]
        return paddle.matmul(self.lokr_w1, inner).reshape([*x.shape[:-1], a * c])

    def matrix(self) -> paddle.Tensor:
        return paddle.kron(self.lokr_w1.astype("float32"), self.lokr_w2.astype("float32"))


class Dense(WeightChange):
    """M itself, the parameter ``diff``.

    Args:
        matrix [out, in]
        **options: of :class:`WeightChange`.
    """

    diff: paddle.Tensor

    def __init__(self, matrix: paddle.Tensor, **options: Any) -> None:
        super().__init__(**options)
        self.diff = _parameter(matrix)

    def product(self, x: paddle.Tensor) -> paddle.Tensor:
        return linear(x, self.diff)

    def matrix(self) -> paddle.Tensor:
        return self.diff.astype("float32")


def _row_norms(weight):
    return weight.square().sum(axis=1).sqrt()


def hadamard(
    up1: paddle.Tensor, down1: paddle.Tensor, up2: paddle.Tensor, down2: paddle.Tensor, **options: Any
) -> WeightChange:
    """``M = (up1 down1) o (up2 down2)`` as a low-rank change.

    Entry (i, j) is the sum over p and q of ``up1[i, p] up2[i, q] * down1[p, j] down2[q, j]``: a product of rank r * r.
    Where these factors are larger than the matrix, the matrix is used.
    """
    (out, r1), (r2, width) = up1.shape, down2.shape
    if r1 * r2 * (out + width) > out * width:
        return Dense(paddle.matmul(up1, down1) * paddle.matmul(up2, down2), **options)
    up = (up1.unsqueeze(2) * up2.unsqueeze(1)).reshape([out, r1 * r2])
    down = (down1.unsqueeze(1) * down2.unsqueeze(0)).reshape([r1 * r2, width])
    return LowRank(down, up, **options)


def _parameter(tensor: paddle.Tensor) -> paddle.Tensor:
    """A parameter that shares the memory of ``tensor``; not trainable at first."""
    attribute = paddle.ParamAttr(initializer=nn.initializer.Constant(0.0), trainable=False)
    name: Any = dtype_name(tensor.dtype)
    parameter = paddle.create_parameter(tensor.shape, name, attr=attribute)
    tensor = tensor.contiguous() if not tensor.is_contiguous() else tensor
    share_memory(tensor, parameter)
    return parameter
