"""The networks: the transformer and the autoencoder."""

from .autoencoder_kl import AutoencoderKL
from .transformer_sd3 import SD3Transformer2DModel

__all__ = ["AutoencoderKL", "SD3Transformer2DModel"]
