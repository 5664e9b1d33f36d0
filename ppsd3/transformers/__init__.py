"""The text towers of SD3 and their tokenizers, and the image tower of its IP-adapter.

Counterparts of the transformers classes of the same names: the same ``config.json``, the same tensor names, the same
token ids. Nothing here imports transformers, torch, sentencepiece or protobuf.
"""

from .clip import CLIPTextModelOutput, CLIPTextModelWithProjection, CLIPTokenizer
from .siglip import (
    SiglipImageProcessor,
    SiglipImageProcessorOutput,
    SiglipVisionModel,
    SiglipVisionModelOutput,
)
from .t5 import T5EncoderModel, T5EncoderOutput, T5Tokenizer
from .tokenization import TokenizerOutput

# What transformers calls its classes over the `tokenizers` library, as these are.
CLIPTokenizerFast = CLIPTokenizer
T5TokenizerFast = T5Tokenizer

__all__ = [
    "CLIPTextModelOutput",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "SiglipImageProcessor",
    "SiglipImageProcessorOutput",
    "SiglipVisionModel",
    "SiglipVisionModelOutput",
    "T5EncoderModel",
    "T5EncoderOutput",
    "T5Tokenizer",
    "T5TokenizerFast",
    "TokenizerOutput",
]
