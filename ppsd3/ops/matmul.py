"""Products of float32 matrices: by which algorithm, for which sizes, and how exactly."""

from __future__ import annotations

from functools import partial

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from . import features
from .dispatch import native, operation
from .native import matmul as kernels


def _without_amx(*_, **__):
    """On a CPU with AMX, what is too small for its tiles is best left to Paddle."""
    return not features.has("amx")


# The sizes from which an algorithm pays are measured: all but Paddle's prepare their operands first.
@operation(
    native(kernels.amx, "amx", ("amx",), precisions=("high", "strassen"), pays=kernels.amx_pays),
    native(
        partial(kernels.amx, parts=1),
        "amx bfloat16",
        ("amx",),
        precisions=("medium",),
        pays=partial(kernels.amx_pays, parts=1),
    ),
    native(
        kernels.strassen,
        "strassen",
        ("avx512",),
        precisions=("strassen",),
        accepts=kernels.strassen_accepts,
        pays=kernels.strassen_pays,
    ),
    native(kernels.bfloat16, "avx512 bfloat16", ("avx512_bf16",), precisions=("medium",), pays=_without_amx),
    native(kernels.by_paddle),
    deciding=2,
)
def matmul(
    a: Tensor,
    b: Tensor,
    transpose_x: bool = False,
    transpose_y: bool = False,
    bias: Tensor | None = None,
    gelu_after: bool = False,
) -> Tensor:
    """``a b + bias``, or tanh-GELU of it, without a gradient: what linear layers and their gradients are made of.

    Shapes: ``a [..., K]`` or, transposed, ``[K, M]``; ``b [K, N]`` or, transposed, ``[N, K]``; ``bias [N]``.
    """
    y = paddle.matmul(a, b, transpose_x, transpose_y)
    y = y if bias is None else y + bias
    return F.gelu(y, approximate=True) if gelu_after else y
