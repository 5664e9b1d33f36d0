"""From arguments to pictures."""

from .image_processor import VaeImageProcessor
from .pipeline_utils import DiffusionPipeline
from .stable_diffusion_3 import StableDiffusion3Pipeline, StableDiffusion3PipelineOutput

__all__ = ["DiffusionPipeline", "StableDiffusion3Pipeline", "StableDiffusion3PipelineOutput", "VaeImageProcessor"]
