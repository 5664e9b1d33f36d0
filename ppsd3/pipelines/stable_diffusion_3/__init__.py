"""Stable Diffusion 3: stages as free functions, tasks as objects, and the pipelines that put them in a row."""

from .pipeline_output import StableDiffusion3PipelineOutput
from .pipeline_pag_sd_3 import StableDiffusion3PAGPipeline
from .pipeline_pag_sd_3_img2img import StableDiffusion3PAGImg2ImgPipeline
from .pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from .pipeline_stable_diffusion_3_controlnet import StableDiffusion3ControlNetPipeline
from .pipeline_stable_diffusion_3_controlnet_img2img import StableDiffusion3ControlNetImg2ImgPipeline
from .pipeline_stable_diffusion_3_controlnet_inpainting import StableDiffusion3ControlNetInpaintingPipeline
from .pipeline_stable_diffusion_3_img2img import StableDiffusion3Img2ImgPipeline
from .pipeline_stable_diffusion_3_inpaint import StableDiffusion3InpaintPipeline

__all__ = [
    "StableDiffusion3ControlNetImg2ImgPipeline",
    "StableDiffusion3ControlNetInpaintingPipeline",
    "StableDiffusion3ControlNetPipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
    "StableDiffusion3PAGImg2ImgPipeline",
    "StableDiffusion3PAGPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusion3PipelineOutput",
]
