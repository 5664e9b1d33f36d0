"""Stable Diffusion 3 and 3.5 on PaddlePaddle."""

__version__ = "0.1.0"
