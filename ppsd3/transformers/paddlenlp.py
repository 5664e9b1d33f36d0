"""Text encoders and tokenizers of PaddleNLP, and of ppdiffusers, which has its own versions of them, as ppsd3's own."""

from __future__ import annotations

import tempfile
from typing import Any

from ..modeling_utils import ModelMixin
from ..serialization.tensor_dict import TensorDict
from ..serialization.tensors import is_floating
from ..utils.checking import checks_arguments
from ..utils.errors import InputError
from ..utils.foreign import CONVERTIBLE, convertible_name, described
from .clip import CLIPTextModelWithProjection, CLIPTokenizer
from .t5 import T5EncoderModel, T5Tokenizer

_CLASSES = {kind.__name__: kind for kind in (CLIPTextModelWithProjection, T5EncoderModel, CLIPTokenizer, T5Tokenizer)}


@checks_arguments
def from_paddlenlp(part: Any) -> Any:
    """Makes ppsd3's own text encoder or tokenizer of one of PaddleNLP or ppdiffusers.

    ::

        pipe.text_encoder_3 = ppsd3.from_paddlenlp(pipe.text_encoder_3)

    Those of PaddleNLP can be components of a pipeline as they are. What changes a text encoder needs ppsd3's own: int8,
    LoRA, textual inversion; and prompts with weights need its tokenizers.

    Args:
        part: a ``CLIPTextModelWithProjection``, ``T5EncoderModel``, ``CLIPTokenizer`` or ``T5Tokenizer``, or of a class
            that extends one. It stays as it is. One of ppsd3 is given back.

    Returns:
        The class of the same name, in ``ppsd3``. A text encoder has copies of the weights, of the first one's dtype (in
        float16, T5's layers that overflow are float32) and on its device, and is in evaluation mode.

    Raises:
        InputError: another class.
        WeightMismatchError: the weights are not those of the class, e.g. with adapters among them.
    """
    if isinstance(part, tuple(_CLASSES.values())):
        return part
    name = convertible_name(part)
    if name is None:
        raise InputError(
            f"from_paddlenlp takes a {', '.join(CONVERTIBLE)} of PaddleNLP or ppdiffusers, not {described(part)}. Load "
            "other parts with ppsd3's classes."
        )
    kind = _CLASSES[name]
    if not issubclass(kind, ModelMixin):
        with tempfile.TemporaryDirectory() as directory:
            part.save_pretrained(directory)
            return kind.from_pretrained(directory)
    config = {key: getattr(part.config, key) for key in kind._known_keys() if hasattr(part.config, key)}
    tensors = part.state_dict()
    dtype = next(tensor.dtype for tensor in tensors.values() if is_floating(tensor.dtype))
    return kind.from_source(TensorDict(tensors, described(part), {"format": "np"}), config, dtype)
