"""Which classes the names in ``model_index.json`` stand for, and which names are written there."""

from __future__ import annotations

import importlib

from paddle import nn

from ..modeling_utils import ModelMixin
from ..utils.errors import ConfigError, InputError
from ..utils.foreign import convertible_name, described, is_foreign
from .residency import OnDemandNetwork

# Class name in a saved index -> (library that we write beside it, module of ppsd3, class there). The only place that
# knows: a name that transformers or ppdiffusers writes for the same thing is one more line.
COMPONENT_CLASSES = {
    "SD3Transformer2DModel": ("diffusers", "models", "SD3Transformer2DModel"),
    "ObjectiveTransformer2DModel": ("ppsd3", "training.objective_transformer", "ObjectiveTransformer2DModel"),
    "SD3ControlNetModel": ("diffusers", "models", "SD3ControlNetModel"),
    "SD3MultiControlNetModel": ("diffusers", "models", "SD3MultiControlNetModel"),
    "AutoencoderKL": ("diffusers", "models", "AutoencoderKL"),
    "AutoencoderTiny": ("diffusers", "models", "AutoencoderTiny"),
    "FlowMatchEulerDiscreteScheduler": ("diffusers", "schedulers", "FlowMatchEulerDiscreteScheduler"),
    "FlowMatchHeunDiscreteScheduler": ("diffusers", "schedulers", "FlowMatchHeunDiscreteScheduler"),
    "FlowMatchLCMScheduler": ("diffusers", "schedulers", "FlowMatchLCMScheduler"),
    "DPMSolverMultistepScheduler": ("diffusers", "schedulers", "DPMSolverMultistepScheduler"),
    "UniPCMultistepScheduler": ("diffusers", "schedulers", "UniPCMultistepScheduler"),
    "CLIPTextModelWithProjection": ("transformers", "transformers", "CLIPTextModelWithProjection"),
    "T5EncoderModel": ("transformers", "transformers", "T5EncoderModel"),
    "SiglipVisionModel": ("transformers", "transformers", "SiglipVisionModel"),
    "SiglipImageProcessor": ("transformers", "transformers", "SiglipImageProcessor"),
    "SiglipImageProcessorFast": ("transformers", "transformers", "SiglipImageProcessor"),
    "SiglipImageProcessorPil": ("transformers", "transformers", "SiglipImageProcessor"),
    "CLIPTokenizer": ("transformers", "transformers", "CLIPTokenizer"),
    "CLIPTokenizerFast": ("transformers", "transformers", "CLIPTokenizer"),
    "T5Tokenizer": ("transformers", "transformers", "T5Tokenizer"),
    "T5TokenizerFast": ("transformers", "transformers", "T5Tokenizer"),
}

# Class name in a saved index -> (module of ppsd3, class there).
PIPELINE_CLASSES = {
    name: ("pipelines", name)
    for name in (
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "StableDiffusion3PAGPipeline",
        "StableDiffusion3PAGImg2ImgPipeline",
        "StableDiffusion3ControlNetPipeline",
        "StableDiffusion3ControlNetImg2ImgPipeline",
        "StableDiffusion3ControlNetInpaintingPipeline",
    )
}


def component_class(name, class_name, directory):
    """The class of ppsd3 for the component ``name`` that the index in ``directory`` calls a ``class_name``.

    Raises:
        ConfigError: there is none.
    """
    if class_name not in COMPONENT_CLASSES:
        raise ConfigError(
            f"The component {name!r} of {directory} is a {class_name!r}, which ppsd3 does not have (it has "
            f"{', '.join(COMPONENT_CLASSES)}). Pass `{name}=` an object of your own, or `{name}=None`."
        )
    return _import(*COMPONENT_CLASSES[class_name][1:])


def pipeline_class(name):
    """The pipeline class called ``name``, one of ``PIPELINE_CLASSES``."""
    return _import(*PIPELINE_CLASSES[name])


def _import(module, name):
    return getattr(importlib.import_module("..." + module, __name__), name)


def index_entry(name, component):
    """(library, class name) that the index holds for a component; (None, None) for one that is absent."""
    if component is None:
        return None, None
    kind = component.network_class if isinstance(component, OnDemandNetwork) else type(component)
    for class_ in kind.__mro__:  # a user's subclass is saved as the class that it extends
        if class_.__name__ in COMPONENT_CLASSES:
            return COMPONENT_CLASSES[class_.__name__][0], class_.__name__
    raise InputError(
        f"The component {name!r} is a {type(component).__name__}, which has no name in a diffusers checkpoint. Use one "
        f"of {', '.join(COMPONENT_CLASSES)} or a subclass."
    )


def require_savable(name, component):
    """Raises InputError if a component's files would be of no use: a network, or any object, of another library that
    cannot be converted either."""
    unknown = is_foreign(component) or (isinstance(component, nn.Layer) and not isinstance(component, ModelMixin))
    if unknown and convertible_name(component) is None:
        raise InputError(
            f"The component {name!r} is {described(component)}, which would write files that ppsd3 does not load. Use "
            f"the class of that name of ppsd3, or save the pipeline with {name}=None."
        )
