"""Parts of a training loop, where programs for diffusers and ppdiffusers look for them.

A loop that has them all is :mod:`ppsd3.training.trainer`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import paddle
from paddle import nn

from .serialization.tensors import cast, floating_dtype, put
from .training.ema_model import EMAModel as EMAModel
from .utils.checking import Range, checks_arguments
from .utils.errors import InputError
from .utils.paddle_internals import no_grad
from .utils.random import Generator, TorchGenerator, randn
from .utils.types import Dtype

__path__: list[str] = []  # see utils/elsewhere.py


@checks_arguments
def compute_density_for_timestep_sampling(
    weighting_scheme: str,
    batch_size: Annotated[int, Range(1, 2**31 - 1)],
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    mode_scale: float = 1.29,
    device: Any = "cpu",
    generator: Generator | None = None,
) -> paddle.Tensor:
    """Draws times of a flow for training (SD3 paper, section 3.1).

    Args:
        weighting_scheme: "logit_normal", "mode", or any other for uniform times.
        logit_mean, logit_std: of "logit_normal".
        mode_scale: of "mode".
        device: can only be "cpu", where the times are made.
        generator: a ``TorchGenerator`` draws what torch draws; "logit_normal" takes a Paddle generator too. Default:
            Paddle's global stream.

    Returns:
        float32 [batch_size] in [0, 1], an index into the timesteps as a part of their number.

    Raises:
        InputError: another device, or a generator that cannot draw these.
    """
    if str(device) != "cpu":
        raise InputError(f"device is {device!r}; the times are made on the CPU. Leave it out, and move the result.")
    if weighting_scheme == "logit_normal":
        return nn.functional.sigmoid(randn([batch_size], generator) * logit_std + logit_mean)
    if not (generator is None or isinstance(generator, TorchGenerator)):
        raise InputError(f"generator is a {type(generator).__name__}; pass a ppsd3.TorchGenerator, or None.")
    u = paddle.rand([batch_size]) if generator is None else paddle.to_tensor(generator.rand([batch_size]))
    if weighting_scheme == "mode":
        return 1 - u - mode_scale * (paddle.cos(math.pi * u / 2) ** 2 - 1 + u)
    return u


@checks_arguments
def compute_loss_weighting_for_sd3(weighting_scheme: str, sigmas: paddle.Tensor) -> paddle.Tensor:
    """Weights of the loss at the noise levels ``sigmas``, of their shape (SD3 paper, section 3.1).

    Args:
        weighting_scheme: "sigma_sqrt" or "cosmap"; any other weighs all alike.
    """
    if weighting_scheme == "sigma_sqrt":
        return (sigmas**-2.0).astype("float32")
    if weighting_scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))
    return paddle.ones_like(sigmas)


@no_grad
@checks_arguments
def cast_training_params(model: nn.Layer | Sequence[nn.Layer], dtype: Dtype = "float32") -> None:
    """Casts the trainable parameters of one or several networks in place, e.g. a LoRA's beside frozen float16."""
    for network in [model] if isinstance(model, nn.Layer) else model:
        for parameter in network.parameters():
            if not parameter.stop_gradient and parameter.dtype != floating_dtype(dtype, "dtype"):
                put(parameter, cast(parameter, floating_dtype(dtype, "dtype")))


@checks_arguments
def set_seed(seed: Annotated[int, Range(0, 2**64 - 1)]) -> None:
    """Seeds Python's, numpy's and Paddle's global streams."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global stream is what is meant)
    paddle.seed(seed)
