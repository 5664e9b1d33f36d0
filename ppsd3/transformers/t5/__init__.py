"""T5's encoder and unigram tokenizer."""

from .modeling import T5EncoderModel, T5EncoderOutput
from .tokenizer import T5Tokenizer

__all__ = ["T5EncoderModel", "T5EncoderOutput", "T5Tokenizer"]
