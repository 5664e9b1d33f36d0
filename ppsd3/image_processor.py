"""The image processor, where programs for diffusers look for it."""

from .pipelines.image_processor import VaeImageProcessor

__all__ = ["VaeImageProcessor"]

__path__: list[str] = []  # see utils/elsewhere.py
