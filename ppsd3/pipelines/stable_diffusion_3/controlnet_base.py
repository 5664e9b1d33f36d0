"""What the pipelines with a ControlNet have in common."""

from ...models import SD3MultiControlNetModel
from ..image_processor import VaeImageProcessor
from .base import StableDiffusion3Base


class StableDiffusion3ControlNetBase(StableDiffusion3Base):
    """A :class:`StableDiffusion3Base` with one more component.

    Args:
        controlnet (SD3ControlNetModel, SD3MultiControlNetModel, or a list of the first): of 12 or 6 joint blocks for
            SD3-medium, of 19 blocks without text for SD3.5-large.
        the others: as in :class:`StableDiffusion3Pipeline`.

    Attributes:
        control_image_processor (VaeImageProcessor): makes pixels of control pictures; e.g. an
            ``SD3CannyImageProcessor`` for the ControlNet that was trained so.
    """

    def __init__(
        self,
        transformer,
        scheduler,
        vae,
        text_encoder,
        tokenizer,
        text_encoder_2,
        tokenizer_2,
        text_encoder_3,
        tokenizer_3,
        controlnet,
        image_encoder=None,
        feature_extractor=None,
    ):
        super().__init__(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        if isinstance(controlnet, (list, tuple)):
            controlnet = SD3MultiControlNetModel(controlnet)
        self.register_modules(controlnet=controlnet)
        self.control_image_processor = VaeImageProcessor(**self.image_processor.config)
