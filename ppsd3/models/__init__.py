"""The networks: the transformer and the autoencoder."""

from .autoencoder_kl import AutoencoderKL
from .autoencoder_tiny import AutoencoderTiny
from .transformer_sd3 import SD3Transformer2DModel

__all__ = ["AutoencoderKL", "AutoencoderTiny", "SD3Transformer2DModel"]
