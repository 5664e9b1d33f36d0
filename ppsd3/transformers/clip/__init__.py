"""CLIP's text tower and byte-pair tokenizer."""

from .modeling import CLIPTextModelOutput, CLIPTextModelWithProjection
from .tokenizer import CLIPTokenizer

__all__ = ["CLIPTextModelOutput", "CLIPTextModelWithProjection", "CLIPTokenizer"]
