"""Mixed precision: operations in 16 bits, parameters and their updates in float32."""

from __future__ import annotations

import contextlib
from typing import Any

import paddle

from ..utils.errors import InputError

MIXED_PRECISIONS = ("no", "bf16", "fp16")


class Precision:
    """What the forward and the backward pass compute in.

    float16 has few exponents: the loss is multiplied by a scale, which halves after a step whose gradients are not
    finite and doubles after ``GROWTH`` steps that are.

    Args:
        name: "no" (float32), "bf16" or "fp16".

    Raises:
        InputError: an unknown name, or 16 bits on a CPU, where Paddle's mixed precision does nothing.
    """

    GROWTH = 2000

    def __init__(self, name: str = "no") -> None:
        if name not in MIXED_PRECISIONS:
            raise InputError(f"mixed_precision={name!r} is unknown: use {', '.join(map(repr, MIXED_PRECISIONS))}.")
        if name != "no" and paddle.get_device().split(":")[0] == "cpu":
            raise InputError(
                f"mixed_precision={name!r} needs a GPU. On a CPU leave it at 'no', and train under "
                "ops.float32_matmul_precision('medium'), which multiplies in bfloat16."
            )
        self.name: str = name
        self.scale: float = 65536.0 if name == "fp16" else 1.0
        self.steps_since_change: int = 0

    def forward(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, operations that can compute in 16 bits do."""
        if self.name == "no":
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(dtype="bfloat16" if self.name == "bf16" else "float16", level="O1")

    def backward(self, loss: paddle.Tensor) -> None:
        """Adds the gradients of ``loss``, times ``scale``."""
        (loss if self.scale == 1 else loss * self.scale).backward()

    def update(self, finite: bool) -> None:
        """Adapts the scale to a step whose gradients were ``finite`` or not."""
        if self.name != "fp16":
            return
        self.steps_since_change = self.steps_since_change + 1 if finite else 0
        if not finite:
            self.scale = max(1.0, self.scale / 2)
        elif self.steps_since_change == self.GROWTH:
            self.scale, self.steps_since_change = self.scale * 2, 0

    def state(self) -> dict[str, Any]:
        """What :meth:`load_state` takes."""
        return {"scale": self.scale, "steps_since_change": self.steps_since_change}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.scale, self.steps_since_change = float(state["scale"]), int(state["steps_since_change"])
