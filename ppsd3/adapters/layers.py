"""LoRA and its relatives: what each adds to a layer, computed exactly.

==========  ===============================================================  ========================
format      change of the weight W                                           class
==========  ===============================================================  ========================
LoRA        ``alpha / r * B A``                                              :class:`LowRank`
DoRA        rows of the changed W are rescaled to the lengths ``m``          any, with ``magnitude``
LoHa        ``alpha / r * (B1 A1) o (B2 A2)``, entry by entry                :class:`LowRank` of rank r * r
LoKr        ``alpha / r * kron(W1, W2)``                                     :class:`Kronecker`
OFT         rows of W are rotated in blocks                                  :class:`Orthogonal`
full        ``D``                                                            :class:`Dense`
several     their sum                                                        :class:`Sum`
==========  ===============================================================  ========================

W is [out, in] of a linear layer, [out, in, k, k] of a convolution, which counts as the matrix [out, in * k * k], and
[n] of a norm.

Sources: LoRA, arXiv 2106.09685; DoRA, 2402.09353; LoHa, 2108.06098; LoKr and OFT, 2309.14859 (LyCORIS), 2306.07280.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ..ops import linear
from ..ops.adapted import Adapter, dense_weight
from ..serialization.tensors import dtype_name, from_numpy
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
        self.lora_magnitude_vector = self.lora_bias = None
        self.put(magnitude, bias)

    def put(self, magnitude: paddle.Tensor | None = None, bias: paddle.Tensor | None = None) -> None:
        """Gives the change a magnitude or bias, or both."""
        if magnitude is not None:
            self.lora_magnitude_vector = _parameter(magnitude)
        if bias is not None:
            self.lora_bias = _parameter(bias)

    def product(self, x: paddle.Tensor, plain: paddle.Tensor) -> paddle.Tensor:
        """``x M^T``: [..., in] -> [..., out]; ``plain`` is ``x W^T``."""
        raise NotImplementedError

    def matrix(self, weight: paddle.Tensor | None = None) -> paddle.Tensor:
        """M, a float32 matrix [out, in] or vector [n]; only rotations read the float32 ``weight`` of that shape."""
        raise NotImplementedError

    def added(self, x: paddle.Tensor, y: paddle.Tensor, layer: Any, strength: float) -> paddle.Tensor:
        scaled = strength * self.scaling
        plain = y if layer.bias is None or not self.reads_plain else y - layer.bias
        change = self.product(x, plain) * scaled
        if self.lora_magnitude_vector is not None:
            weight = dense_weight(layer)
            with paddle.no_grad():  # no gradient passes through the norm (DoRA, section 4.3)
                norm = _row_norms(weight + self.matrix(weight) * scaled)
            factor = (self.lora_magnitude_vector.astype("float32") / norm).astype(y.dtype)
            change = (factor - 1.0) * plain + factor * change
        bias = self.bias_change(strength)
        return change if bias is None else change + bias.astype(y.dtype)

    @property
    def reads_plain(self) -> bool:
        """Whether :meth:`added` needs the layer's output without its bias."""
        return self.lora_magnitude_vector is not None

    def weight_change(self, weight: paddle.Tensor, strength: float) -> paddle.Tensor:
        rows = weight if weight.ndim == 1 else weight.flatten(1)
        change = self.matrix(rows) * (strength * self.scaling)
        if self.lora_magnitude_vector is not None:
            whole = rows + change
            change = whole * (self.lora_magnitude_vector.astype("float32") / _row_norms(whole)).unsqueeze(1) - rows
        return change.reshape(weight.shape)

    def bias_change(self, strength: float) -> paddle.Tensor | None:
        return None if self.lora_bias is None else self.lora_bias.astype("float32") * (strength * self.scaling)

    def extra_repr(self) -> str:
        return f"scaling={self.scaling:g}" + ("" if self.lora_magnitude_vector is None else ", dora")


class LowRank(WeightChange):
    """``M = B A``.

    Args:
        down [r, in], up [out, r]: A and B, the parameters ``lora_A`` and ``lora_B``; of a convolution [r, in, k, k] and
            [out, r, 1, 1].
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

    def product(self, x: paddle.Tensor, plain: paddle.Tensor) -> paddle.Tensor:
        if self.dropout:
            x = F.dropout(x, self.dropout, training=self.training)
        return linear(linear(x, self.lora_A), self.lora_B)

    def matrix(self, weight: paddle.Tensor | None = None) -> paddle.Tensor:
        return paddle.matmul(self.lora_B.astype("float32").flatten(1), self.lora_A.astype("float32").flatten(1))


class Kronecker(WeightChange):
    """``M = kron(first, second)``, applied without computing M: ``first X second^T``.

    Args:
        first [a, b], second [c, d]: a * c is ``out``, b * d is ``in``; ``lokr_w1`` and ``lokr_w2``. Or ``second`` is
            two matrices [c, r] and [r, d], ``lokr_w2_a`` and ``lokr_w2_b``, whose product it is.
        **options: of :class:`WeightChange`.
    """

    lokr_w1: paddle.Tensor

    def __init__(
        self, first: paddle.Tensor, second: paddle.Tensor | tuple[paddle.Tensor, paddle.Tensor], **options: Any
    ) -> None:
        super().__init__(**options)
        self.lokr_w1 = _parameter(first)
        factors = second if isinstance(second, tuple) else (second,)
        names = ("lokr_w2_a", "lokr_w2_b") if len(factors) == 2 else ("lokr_w2",)
        for name, factor in zip(names, factors):
            setattr(self, name, _parameter(factor))
        self._names = names

    @property
    def factors(self) -> dict[str, paddle.Tensor]:
        """What ``second`` is a product of, by LyCORIS' names."""
        return {name: getattr(self, name) for name in self._names}

    def product(self, x: paddle.Tensor, plain: paddle.Tensor) -> paddle.Tensor:
        (a, b), factors = self.lokr_w1.shape, list(self.factors.values())
        c, d = factors[0].shape[0], factors[-1].shape[1]
        inner = x.reshape([*x.shape[:-1], b, d])
        for factor in reversed(factors):
            inner = linear(inner, factor)  # [..., b, c] at last
        return paddle.matmul(self.lokr_w1, inner).reshape([*x.shape[:-1], a * c])

    def matrix(self, weight: paddle.Tensor | None = None) -> paddle.Tensor:
        second = reduce(paddle.matmul, (factor.astype("float32") for factor in self.factors.values()))
        return paddle.kron(self.lokr_w1.astype("float32"), second)


class Orthogonal(WeightChange):
    """``M = R W - W``: R rotates the rows of W in blocks, by the Cayley transform of skew matrices (diag-OFT).

    With a strength, M is scaled as any change is: LyCORIS and ComfyUI go from W to R W on the same straight line.

    Args:
        blocks [n, b, b]: n * b is ``out``; the skew matrices are ``blocks - blocks^T``; the parameter ``oft_blocks``.
        rescale [out]: factors of the rotated rows; None for ones.
        **options: of :class:`WeightChange`.
    """

    oft_blocks: paddle.Tensor
    rescale: paddle.Tensor | None

    def __init__(self, blocks: paddle.Tensor, rescale: paddle.Tensor | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.oft_blocks = _parameter(blocks)
        self.rescale = None if rescale is None else _parameter(rescale)
        values = blocks.astype("float32").numpy().astype(np.float64)
        skew, one = values - values.transpose(0, 2, 1), np.eye(values.shape[1])
        # (I + Q) (I - Q)^-1, whose factors commute; rows multiply it from the left
        rotation = from_numpy(np.linalg.solve(one - skew, one + skew).astype(np.float32))
        self.register_buffer("rotation", rotation, persistable=False)

    @property
    def reads_plain(self) -> bool:
        return True

    def _rotated(self, rows):
        """``rows`` [T, out], with the blocks of their second axis rotated."""
        count, size = self.rotation.shape[:2]
        blocks = rows.reshape([-1, count, size]).transpose([1, 0, 2])  # [n, T, b]
        rotated = paddle.matmul(blocks, self.rotation.astype(rows.dtype)).transpose([1, 0, 2])
        rotated = rotated.reshape([-1, count * size])
        return rotated if self.rescale is None else rotated * self.rescale.astype(rows.dtype)

    def product(self, x: paddle.Tensor, plain: paddle.Tensor) -> paddle.Tensor:
        return self._rotated(plain.reshape([-1, plain.shape[-1]])).reshape(plain.shape) - plain

    def matrix(self, weight: paddle.Tensor | None = None) -> paddle.Tensor:
        assert weight is not None
        return self._rotated(weight.t()).t() - weight


class Dense(WeightChange):
    """M itself, the parameter ``diff``.

    Args:
        matrix: of the shape of the layer's weight.
        **options: of :class:`WeightChange`.
    """

    diff: paddle.Tensor

    def __init__(self, matrix: paddle.Tensor, **options: Any) -> None:
        super().__init__(**options)
        self.diff = _parameter(matrix)

    def product(self, x: paddle.Tensor, plain: paddle.Tensor) -> paddle.Tensor:
        return linear(x, self.diff)

    def matrix(self, weight: paddle.Tensor | None = None) -> paddle.Tensor:
        change = self.diff.astype("float32")
        return change if change.ndim == 1 else change.flatten(1)


class Sum(WeightChange):
    """Several changes of one layer added up; magnitudes are the lengths of the rows after all of them.

    Args:
        parts: with scalings and biases of their own, and without magnitudes; none where only a bias changes.
        **options: of :class:`WeightChange`.
    """

    def __init__(self, parts: Sequence[WeightChange], **options: Any) -> None:
        super().__init__(**options)
        self.parts: Any = nn.LayerList(parts)

    @property
    def reads_plain(self) -> bool:
        return super().reads_plain or any(part.reads_plain for part in self.parts)

    def product(self, x: paddle.Tensor, plain: paddle.Tensor) -> paddle.Tensor:
        changes = [part.product(x, plain) * part.scaling for part in self.parts]
        return reduce(operator.add, changes) if changes else paddle.zeros_like(plain)

    def matrix(self, weight: paddle.Tensor | None = None) -> paddle.Tensor:
        assert weight is not None
        return reduce(
            operator.add, (part.matrix(weight) * part.scaling for part in self.parts), paddle.zeros_like(weight)
        )

    def bias_change(self, strength: float) -> paddle.Tensor | None:
        changes = [super().bias_change(strength), *(part.bias_change(strength * self.scaling) for part in self.parts)]
        changes = [change for change in changes if change is not None]
        return reduce(operator.add, changes) if changes else None


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
