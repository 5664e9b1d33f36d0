"""``randn_tensor``, where programs for ppdiffusers look for it."""

from .random import randn_tensor

__all__ = ["randn_tensor"]
