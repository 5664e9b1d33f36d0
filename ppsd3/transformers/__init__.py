"""The text towers of SD3 and their tokenizers.

Counterparts of the transformers classes of the same names: the same ``config.json``, the same tensor names, the same
token ids. Nothing here imports transformers, torch, sentencepiece or protobuf.
"""

from .clip import CLIPTextModelOutput, CLIPTextModelWithProjection, CLIPTokenizer
from .t5 import T5EncoderModel, T5EncoderOutput, T5Tokenizer
from .tokenization import TokenizerOutput

__all__ = [
    "CLIPTextModelOutput",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "T5EncoderModel",
    "T5EncoderOutput",
    "T5Tokenizer",
    "TokenizerOutput",
]
