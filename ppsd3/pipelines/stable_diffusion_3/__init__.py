"""Stable Diffusion 3: stages as free functions, and the pipelines that put them in a row."""

from .pipeline_output import StableDiffusion3PipelineOutput
from .pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

__all__ = ["StableDiffusion3Pipeline", "StableDiffusion3PipelineOutput"]
