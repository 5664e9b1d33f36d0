"""SigLIP's image tower and the processor that prepares pictures for it."""

from .image_processor import SiglipImageProcessor, SiglipImageProcessorOutput
from .modeling import SiglipVisionModel, SiglipVisionModelOutput

__all__ = ["SiglipImageProcessor", "SiglipImageProcessorOutput", "SiglipVisionModel", "SiglipVisionModelOutput"]
