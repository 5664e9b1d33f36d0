"""What pipelines load beside directories in diffusers format."""

from .single_file import FromSingleFileMixin

__all__ = ["FromSingleFileMixin"]
