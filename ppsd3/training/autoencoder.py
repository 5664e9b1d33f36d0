"""Training task of the autoencoder: reconstruct pictures from a latent that is close to a standard normal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Callable

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ..models import AutoencoderKL
from ..utils.checking import Range, checks_arguments
from ..utils.paddle_internals import no_grad

Count = Annotated[int, Range(1)]
Pictures = Callable[[np.random.Generator, int], np.ndarray]


@checks_arguments
@dataclasses.dataclass
class AutoencoderTask:
    """Pixel reconstruction plus a small KL term (LDM's first stage without its perceptual and adversarial terms).

    Args:
        vae: trained in place.
        pictures: ``pictures(rng, batch)`` -> uint8 [B, H, W, 3].
        batch: pictures per step.
        kl_weight: of the KL divergence, summed over a latent and averaged over the batch, per pixel value. Larger makes
            latents smoother and easier to generate, smaller makes them more exact.
        edge_weight: extra weight of a pixel at an edge of full contrast. Small shapes are mostly edges.
        latent_noise: standard deviation of noise added to latents beside the posterior's own, so that the decoder
            tolerates the errors of generated latents.
        settings: what else a resumed run must share, as JSON values.
    """

    vae: AutoencoderKL
    pictures: Pictures
    batch: Count = 16
    kl_weight: Annotated[float, Range(0)] = 1e-4
    edge_weight: Annotated[float, Range(0)] = 0.0
    latent_noise: Annotated[float, Range(0)] = 0.0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def layers(self) -> dict[str, nn.Layer]:
        """The trained networks."""
        return {"vae": self.vae}

    @property
    def configuration(self) -> dict[str, Any]:
        """What a resumed run must share."""
        names = ("batch", "kl_weight", "edge_weight", "latent_noise")
        return {**self.settings, **{name: getattr(self, name) for name in names}}

    def loss(self, rng: np.random.Generator, batch: int) -> tuple[paddle.Tensor, dict[str, Any]]:
        """L1 + L2 + KL of one batch."""
        x = to_model_range(self.pictures(rng, self.batch))
        posterior = self.vae.encode(x, return_dict=False)[0]
        noise = rng.standard_normal(posterior.mean.shape, dtype=np.float32)
        z = posterior.mean + (posterior.std + self.latent_noise) * paddle.to_tensor(noise)
        error = self.vae.decode(z, return_dict=False)[0] - x
        weight = 1 + self.edge_weight * local_contrast(x)
        absolute = (weight * error.abs()).mean()
        squared = (weight * error.square()).mean()
        kl = posterior.kl().mean() / float(np.prod(x.shape[1:]))
        loss = absolute + squared + self.kl_weight * kl
        return loss, {"l1": float(absolute), "mse": float(squared), "kl": float(kl)}


@no_grad
def local_contrast(x: paddle.Tensor) -> paddle.Tensor:
    """Range of values in each 3 x 3 window, mean over channels: [B, C, H, W] in [-1, 1] -> [B, 1, H, W] in [0, 1]."""
    highest = F.max_pool2d(x, 3, stride=1, padding=1)
    lowest = -F.max_pool2d(-x, 3, stride=1, padding=1)
    return (highest - lowest).mean(axis=1, keepdim=True) / 2


def to_model_range(pictures: np.ndarray) -> paddle.Tensor:
    """uint8 [B, H, W, 3] -> float32 tensor [B, 3, H, W] in [-1, 1]."""
    return paddle.to_tensor(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1)


@no_grad
@checks_arguments
def latent_statistics(
    vae: AutoencoderKL,
    pictures: Pictures,
    batches: Count = 32,
    batch: Count = 32,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean and standard deviation of latents, for ``shift_factor`` and ``1 / scaling_factor``."""
    rng = np.random.default_rng(seed)
    draws = (to_model_range(pictures(rng, batch)) for _ in range(batches))
    means = [vae.encode(x, return_dict=False)[0].mean.numpy() for x in draws]
    values = np.concatenate(means)
    return float(values.mean()), float(values.std())
