"""A small procedural world of captioned pictures, which the bundled model draws, and the judge that reads them."""

from .world import Object, Scene, caption, render, render_batch, sample_scene

__all__ = ["Object", "Scene", "caption", "render", "render_batch", "sample_scene"]
