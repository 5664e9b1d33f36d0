"""The networks: the transformer, its ControlNets and the autoencoder."""

from .autoencoder_kl import AutoencoderKL
from .autoencoder_tiny import AutoencoderTiny
from .controlnet_sd3 import SD3ControlNetModel, SD3MultiControlNetModel
from .ip_adapter import IPAdapter
from .transformer_sd3 import SD3Transformer2DModel

__all__ = [
    "AutoencoderKL",
    "AutoencoderTiny",
    "IPAdapter",
    "SD3ControlNetModel",
    "SD3MultiControlNetModel",
    "SD3Transformer2DModel",
]
