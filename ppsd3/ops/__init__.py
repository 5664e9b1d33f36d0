"""The only place that knows kernels; everything else calls these names."""

from .linear import Linear

__all__ = ["Linear"]
