"""The networks: the transformer and the autoencoder."""

from .transformer_sd3 import SD3Transformer2DModel

__all__ = ["SD3Transformer2DModel"]
