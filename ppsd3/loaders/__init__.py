"""What pipelines load beside directories in diffusers format."""

from .ip_adapter import SD3IPAdapterMixin
from .lora import SD3LoraLoaderMixin
from .single_file import FromSingleFileMixin
from .textual_inversion import TextualInversionLoaderMixin

__all__ = ["FromSingleFileMixin", "SD3IPAdapterMixin", "SD3LoraLoaderMixin", "TextualInversionLoaderMixin"]
