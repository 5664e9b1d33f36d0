"""Which classes the names in ``model_index.json`` stand for, and which names are written there."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from paddle import nn

from ..modeling_utils import ModelMixin
from ..utils import signatures
from ..utils.errors import ConfigError, InputError
from ..utils.foreign import convertible_name, described, is_foreign
from ..utils.recognition import explain_class
from ..utils.samplers import explain_sampler
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
        owner = f"The component {name!r} of {directory}"
        known = explain_class(owner, class_name) or explain_sampler(owner, class_name)
        raise ConfigError(
            f"{known} Or pass `{name}=` an object of your own."
            if known
            else f"{owner} is a {class_name!r}, which ppsd3 does not have (it has "
            f"{', '.join(COMPONENT_CLASSES)}). Pass `{name}=` an object of your own, or `{name}=None`."
        )
    return _import(*COMPONENT_CLASSES[class_name][1:])


def pipeline_class(name):
    """The pipeline class called ``name``, one of ``PIPELINE_CLASSES``."""
    return _import(*PIPELINE_CLASSES[name])


def check_fit(components):
    """Raises InputError if networks are not those of one model, as far as their configurations tell it.

    What only other objects have is not looked at: any class may stand in for a component.
    """

    def entry(name, key):
        config = getattr(components.get(name), "config", None)
        return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)

    for name, key, other in (
        ("vae", "latent_channels", "out_channels"),
        ("text_encoder_3", "d_model", "joint_attention_dim"),
    ):
        own, wanted = entry(name, key), entry("transformer", other)
        if None not in (own, wanted) and own != wanted:
            known = signatures.VAE_CHANNELS if name == "vae" else signatures.TEXT_WIDTHS["a T5 encoder"]
            whose = f" ({known[own]})" if own in known else ""
            raise InputError(
                f"The {name} has {key}={own}{whose}, and the transformer has {other}={wanted}: they do not belong "
                f"together. Use the {name} of the transformer's own checkpoint."
            )
    scaling = entry("vae", "scaling_factor"), entry("vae", "shift_factor")
    if scaling == signatures.FLUX_SCALING:
        raise InputError(
            f"The vae is FLUX.1's, by its scaling_factor {scaling[0]} and shift_factor {scaling[1]}. Its latents have "
            f"the shape of Stable Diffusion 3's and another meaning. {signatures.VAE_REMEDY}"
        )
    if (entry("text_encoder", "hidden_size"), entry("text_encoder_2", "hidden_size")) == (1280, 768):
        raise InputError("The text_encoder is OpenCLIP bigG and the text_encoder_2 CLIP-L. Exchange the two.")


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
