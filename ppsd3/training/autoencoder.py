"""Training task of the autoencoder: reconstruct pictures from a latent close to a standard normal."""

import numpy as np
import paddle
import paddle.nn.functional as F


class AutoencoderTask:
    """Pixel reconstruction plus a small KL term (LDM's first stage without its perceptual and adversarial terms).

    Args:
        vae (AutoencoderKL): trained in place.
        pictures (callable): ``pictures(rng, batch)`` -> uint8 [B, H, W, 3].
        batch (int): pictures per step.
        kl_weight (float): of the KL divergence, summed over a latent and averaged over the batch, per pixel value.
            Larger makes latents smoother and easier to generate, smaller makes them more exact.
        edge_weight (float): how much more a pixel counts at an edge of full contrast. Small shapes are mostly edges.
        latent_noise (float): standard deviation of noise on latents beside the posterior's own, so that the decoder
            forgives the errors of what generates latents.
    """

    def __init__(self, vae, pictures, batch=16, kl_weight=1e-4, edge_weight=0.0, latent_noise=0.0):
        self.vae, self.pictures, self.batch, self.kl_weight = vae, pictures, batch, kl_weight
        self.edge_weight, self.latent_noise = edge_weight, latent_noise
        self.layers = {"vae": vae}

    def loss(self, rng, step):
        """L1 + L2 + KL of one batch."""
        x = to_model_range(self.pictures(rng, self.batch))
        posterior = self.vae.encode(x).latent_dist
        noise = rng.standard_normal(posterior.mean.shape, dtype=np.float32)
        z = posterior.mean + (posterior.std + self.latent_noise) * paddle.to_tensor(noise)
        error = self.vae.decode(z).sample - x
        weight = 1 + self.edge_weight * local_contrast(x)
        absolute = (weight * error.abs()).mean()
        squared = (weight * error.square()).mean()
        kl = posterior.kl().mean() / float(np.prod(x.shape[1:]))
        loss = absolute + squared + self.kl_weight * kl
        return loss, {"l1": float(absolute), "mse": float(squared), "kl": float(kl)}


@paddle.no_grad()
def local_contrast(x):
    """Range of values in each 3 x 3 window, mean over channels: [B, C, H, W] in [-1, 1] -> [B, 1, H, W] in [0, 1]."""
    highest = F.max_pool2d(x, 3, stride=1, padding=1)
    lowest = -F.max_pool2d(-x, 3, stride=1, padding=1)
    return (highest - lowest).mean(axis=1, keepdim=True) / 2


def to_model_range(pictures):
    """uint8 [B, H, W, 3] -> float32 tensor [B, 3, H, W] in [-1, 1]."""
    return paddle.to_tensor(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1)


@paddle.no_grad()
def latent_statistics(vae, pictures, batches=32, batch=32, seed=0):
    """Mean and standard deviation of latents: what ``shift_factor`` and ``1 / scaling_factor`` are set to."""
    rng = np.random.default_rng(seed)
    means = [vae.encode(to_model_range(pictures(rng, batch))).latent_dist.mean.numpy() for _ in range(batches)]
    values = np.concatenate(means)
    return float(values.mean()), float(values.std())
