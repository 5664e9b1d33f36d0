"""What pipelines load beside directories in diffusers format."""

from .lora import SD3LoraLoaderMixin
from .single_file import FromSingleFileMixin

__all__ = ["FromSingleFileMixin", "SD3LoraLoaderMixin"]
