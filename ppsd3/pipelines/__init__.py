"""From arguments to pictures."""

from .auto_pipeline import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from .image_processor import SD3CannyImageProcessor, VaeImageProcessor
from .pipeline_utils import DiffusionPipeline
from .stable_diffusion_3 import (
    StableDiffusion3ControlNetImg2ImgPipeline,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGImg2ImgPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
    StableDiffusion3PipelineOutput,
)

__all__ = [
    "AutoPipelineForImage2Image",
    "AutoPipelineForInpainting",
    "AutoPipelineForText2Image",
    "DiffusionPipeline",
    "SD3CannyImageProcessor",
    "StableDiffusion3ControlNetImg2ImgPipeline",
    "StableDiffusion3ControlNetInpaintingPipeline",
    "StableDiffusion3ControlNetPipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
    "StableDiffusion3PAGImg2ImgPipeline",
    "StableDiffusion3PAGPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusion3PipelineOutput",
    "VaeImageProcessor",
]
