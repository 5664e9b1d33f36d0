"""What pipelines load beside directories in diffusers format."""

from .lora import SD3LoraLoaderMixin
from .single_file import FromSingleFileMixin
from .textual_inversion import TextualInversionLoaderMixin

__all__ = ["FromSingleFileMixin", "SD3LoraLoaderMixin", "TextualInversionLoaderMixin"]
