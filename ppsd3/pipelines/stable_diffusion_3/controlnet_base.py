"""What the pipelines with a ControlNet have in common."""

from __future__ import annotations

import dataclasses

from ...models import SD3ControlNetModel, SD3MultiControlNetModel
from ..call_signature import Pictures
from ..image_processor import VaeImageProcessor
from .arguments import ControlArguments, ControlImageToImageArguments, ControlInpaintingArguments
from .base import ImageEncoderComponents, StableDiffusion3Base
from .control import Controlled
from .pipeline_output import StableDiffusion3PipelineOutput
from .tasks import Task


@dataclasses.dataclass(eq=False, repr=False)
class _ControlNet:
    controlnet: SD3ControlNetModel | SD3MultiControlNetModel | list[SD3ControlNetModel]


@dataclasses.dataclass(eq=False, repr=False)
class StableDiffusion3ControlNetBase(ImageEncoderComponents, _ControlNet, StableDiffusion3Base):
    """A :class:`StableDiffusion3Base` with one more component.

    Attributes:
        controlnet: of 12 or 6 joint blocks for SD3-medium, of 19 blocks without text for SD3.5-large; a list becomes an
            :class:`SD3MultiControlNetModel`.
        control_image_processor: makes pixels of control pictures; e.g. an ``SD3CannyImageProcessor`` for the ControlNet
            that was trained so. A list has one for each ControlNet.
    """

    def __post_init__(self) -> None:
        if isinstance(self.controlnet, (list, tuple)):
            self.controlnet = SD3MultiControlNetModel(self.controlnet)
        super().__post_init__()
        self.control_image_processor: VaeImageProcessor | list[VaeImageProcessor] = VaeImageProcessor(
            **self.image_processor.config
        )

    def _draw_controlled(
        self,
        task: Task,
        arguments: ControlArguments | ControlImageToImageArguments | ControlInpaintingArguments,
        control_mask: Pictures = None,
    ) -> StableDiffusion3PipelineOutput:
        controlled = Controlled(
            task,
            arguments.control_image,
            arguments.controlnet_conditioning_scale,
            arguments.control_guidance_start,
            arguments.control_guidance_end,
            arguments.controlnet_pooled_projections,
            control_mask,
        )
        return self._draw(controlled, arguments)
