"""Stable Diffusion 3 and 3.5 on PaddlePaddle.

The public names are imported when they are first used, so ``import ppsd3`` costs little more than ``import paddle``
and changes nothing of the process. The first model that is built does: :func:`ppsd3.tune_process`.
"""

# Paddle 2.6 exports symbols of a zlib of its own. A system zlib that is loaded after it calls into them, and saving a
# PNG crashes; one that is loaded before it does not.
import zlib  # noqa: F401

from .utils.device import import_paddle

__version__ = "0.1.0"

_PUBLIC = {
    "AdaptiveProjectedGuidance": "pipelines.stable_diffusion_3.guidance",
    "AutoPipelineForImage2Image": "pipelines",
    "AutoPipelineForInpainting": "pipelines",
    "AutoPipelineForText2Image": "pipelines",
    "AutoencoderKL": "models",
    "AutoencoderTiny": "models",
    "CLIPTextModelWithProjection": "transformers",
    "CLIPTokenizer": "transformers",
    "ClassifierFreeGuidance": "pipelines.stable_diffusion_3.guidance",
    "ClassifierFreeZeroStarGuidance": "pipelines.stable_diffusion_3.guidance",
    "DPMSolverMultistepScheduler": "schedulers",
    "DiffusionPipeline": "pipelines",
    "EasyCache": "pipelines.stable_diffusion_3.step_caching",
    "FirstBlockCache": "pipelines.stable_diffusion_3.step_caching",
    "FlowMatchEulerDiscreteScheduler": "schedulers",
    "FlowMatchHeunDiscreteScheduler": "schedulers",
    "FlowMatchLCMScheduler": "schedulers",
    "GuidanceInterval": "pipelines.stable_diffusion_3.guidance",
    "GuidanceRescale": "pipelines.stable_diffusion_3.guidance",
    "IPAdapter": "adapters",
    "LatentPreview": "pipelines.latent_preview",
    "NoGuidance": "pipelines.stable_diffusion_3.guidance",
    "PerturbedAttentionGuidance": "pipelines.stable_diffusion_3.guidance",
    "PromptCache": "pipelines.stable_diffusion_3.prompt_cache",
    "LoraConfig": "adapters",
    "SD3CannyImageProcessor": "pipelines",
    "SD3ControlNetModel": "models",
    "SD3MultiControlNetModel": "models",
    "SD3Transformer2DModel": "models",
    "SiglipImageProcessor": "transformers",
    "SiglipVisionModel": "transformers",
    "SkipLayerGuidance": "pipelines.stable_diffusion_3.guidance",
    "StableDiffusion3ControlNetImg2ImgPipeline": "pipelines",
    "StableDiffusion3ControlNetInpaintingPipeline": "pipelines",
    "StableDiffusion3ControlNetPipeline": "pipelines",
    "StableDiffusion3Img2ImgPipeline": "pipelines",
    "StableDiffusion3InpaintPipeline": "pipelines",
    "StableDiffusion3PAGImg2ImgPipeline": "pipelines",
    "StableDiffusion3PAGPipeline": "pipelines",
    "StableDiffusion3Pipeline": "pipelines",
    "StableDiffusion3PipelineOutput": "pipelines",
    "T5EncoderModel": "transformers",
    "T5Tokenizer": "transformers",
    "TaylorCache": "pipelines.stable_diffusion_3.step_caching",
    "TorchGenerator": "utils.random",
    "UniPCMultistepScheduler": "schedulers",
    "VaeImageProcessor": "pipelines",
    "WeightedPrompts": "pipelines.stable_diffusion_3.prompt_reading",
    "add_adapter": "adapters",
    "convert": "loaders.conversion",
    "tune_process": "utils.device",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ppsd3' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}.")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_PUBLIC})


import_paddle()
