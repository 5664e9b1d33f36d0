"""The pipeline of a task, whatever pipeline a checkpoint names."""

from __future__ import annotations

import os
from typing import Any

from ..loaders.host import components_taken
from ..utils.errors import InputError
from ..utils.hub import resolve_checkpoint
from ..utils.keywords import HUB_KEYWORDS, LOADING, takes_keywords_of
from ..utils.pipeline_index import read_pipeline_index
from . import component_classes
from .pipeline_utils import DiffusionPipeline

_OPTIONS = ("paddle_dtype", "storage_dtype", "variant", "load_components")


class _AutoPipeline:
    """Chooses the class by what there is: with a ``controlnet`` among the components the ControlNet pipeline."""

    # names of classes
    plain: str
    with_control: str
    with_pag: str | None = None

    def __init__(self):
        raise InputError(f"{type(self).__name__} is not made; use its from_pretrained() or from_pipe().")

    @classmethod
    @takes_keywords_of(LOADING, also=lambda cls: cls._options())
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], enable_pag: bool | None = None, **options: Any
    ) -> Any:
        """See :meth:`DiffusionPipeline.from_pretrained`; the class is that of the task.

        Args:
            enable_pag: whether to make the pipeline with perturbed-attention guidance, whose
                ``pag_applied_layers`` may be among the options. Default: what the checkpoint was saved as.

        Raises:
            InputError: the task has no pipeline with that guidance, beside what ``from_pretrained`` raises.
        """
        hub = {name: options[name] for name in ("variant", *HUB_KEYWORDS) if name in options}
        directory = resolve_checkpoint(pretrained_model_name_or_path, skip_components=tuple(options), **hub)
        index = read_pipeline_index(directory)
        listed = index.get("controlnet")
        control = options.get("controlnet", listed[1] if isinstance(listed, list) else None)
        chosen = cls._choose(control, enable_pag, index.get("_class_name"))
        options.pop("force_download", None)  # that is done
        return chosen.from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, enable_pag: bool | None = None, **components: Any) -> Any:
        """See :meth:`DiffusionPipeline.from_pipe`; the class is that of the task, ``enable_pag`` as above."""
        if not isinstance(pipeline, DiffusionPipeline):
            raise InputError(f"from_pipe takes a pipeline, not a {type(pipeline).__name__}.")
        control = components["controlnet"] if "controlnet" in components else getattr(pipeline, "controlnet", None)
        if control is None:
            components.pop("controlnet", None)
        return cls._choose(control, enable_pag, type(pipeline).__name__).from_pipe(pipeline, **components)

    @classmethod
    def _options(cls):
        """Keywords that one of the classes takes."""
        classes = [
            component_classes.pipeline_class(name) for name in (cls.plain, cls.with_control, cls.with_pag) if name
        ]
        return [
            *_OPTIONS,
            *HUB_KEYWORDS,
            *{name: None for class_ in classes for name in components_taken(class_) or ()},
        ]

    @classmethod
    def _choose(cls, control, enable_pag, present):
        """The class; ``present`` is the name of the one that there is already."""
        if enable_pag and (cls.with_pag is None or control is not None):
            raise InputError(
                f"enable_pag=True: {cls.__name__} has no pipeline with perturbed-attention guidance"
                f"{' and a ControlNet' if control is not None else ''}. Leave it out, and pass "
                "guidance=PerturbedAttentionGuidance(7.0) to the call: every task takes it."
            )
        name = cls.plain if control is None else cls.with_control
        if enable_pag or (enable_pag is None and control is None and "PAG" in present):
            name = cls.with_pag or name
        return component_classes.pipeline_class(name)


class AutoPipelineForText2Image(_AutoPipeline):
    """:class:`StableDiffusion3Pipeline`, :class:`StableDiffusion3ControlNetPipeline` or, with ``enable_pag=True``,
    :class:`StableDiffusion3PAGPipeline`."""

    plain, with_control = "StableDiffusion3Pipeline", "StableDiffusion3ControlNetPipeline"
    with_pag = "StableDiffusion3PAGPipeline"


class AutoPipelineForImage2Image(_AutoPipeline):
    """:class:`StableDiffusion3Img2ImgPipeline`, :class:`StableDiffusion3ControlNetImg2ImgPipeline` or, with
    ``enable_pag=True``, :class:`StableDiffusion3PAGImg2ImgPipeline`."""

    plain, with_control = "StableDiffusion3Img2ImgPipeline", "StableDiffusion3ControlNetImg2ImgPipeline"
    with_pag = "StableDiffusion3PAGImg2ImgPipeline"


class AutoPipelineForInpainting(_AutoPipeline):
    """:class:`StableDiffusion3InpaintPipeline`, or :class:`StableDiffusion3ControlNetInpaintingPipeline`."""

    plain, with_control = "StableDiffusion3InpaintPipeline", "StableDiffusion3ControlNetInpaintingPipeline"
