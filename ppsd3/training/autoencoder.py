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
    """

    def __init__(self, vae, pictures, batch=16, kl_weight=1e-4):
        self.vae, self.pictures, self.batch, self.kl_weight = vae, pictures, batch, kl_weight
        self.layers = {"vae": vae}

    def loss(self, rng, step):
        """L1 + L2 + KL of one batch."""
        x = to_model_range(self.pictures(rng, self.batch))
        posterior = self.vae.encode(x).latent_dist
        noise = rng.standard_normal(posterior.mean.shape, dtype=np.float32)
        z = posterior.mean + posterior.std * paddle.to_tensor(noise)
        reconstruction = self.vae.decode(z).sample
        absolute = F.l1_loss(reconstruction, x)
        squared = F.mse_loss(reconstruction, x)
        kl = posterior.kl().mean() / float(np.prod(x.shape[1:]))
        loss = absolute + squared + self.kl_weight * kl
        return loss, {"l1": float(absolute), "mse": float(squared), "kl": float(kl)}


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
