"""Stand-ins for PaddleNLP's text encoders and tokenizers: classes of these names, in modules of that library."""

import types

import numpy as np
from paddle import nn

from ppsd3.serialization.layout import linear_weights


class _Tower(nn.Layer):
    """Holds linear weights [in, out], as Paddle's libraries do, and computes what the network it is made of does."""

    def __init__(self, own):
        super().__init__()
        self._own = [own]  # not a sublayer
        self.config = types.SimpleNamespace(**own.config, model_type="foreign")
        transposed = linear_weights(own)
        self._state = {
            name: (tensor.t() if name in transposed else tensor).clone() for name, tensor in own.state_dict().items()
        }
        self.dtype = own.dtype

    def state_dict(self):
        return self._state

    def forward(self, *inputs, **options):
        return self._own[0](*inputs, **options)

    def save_pretrained(self, directory):
        raise AssertionError("a pickle would have been written")


class _Tokenizer:
    def __init__(self, own):
        self._own, self.model_max_length = own, own.model_max_length

    def __call__(self, text, padding=False, max_length=None, truncation=False):
        options = {"padding": padding, "max_length": max_length or self._own.model_max_length}
        made = self._own(text, truncation=truncation, **options)
        return types.SimpleNamespace(input_ids=[list(map(int, row)) for row in made.input_ids])

    def decode(self, ids, skip_special_tokens=False):
        return self._own.decode(ids, skip_special_tokens=skip_special_tokens)

    def save_pretrained(self, directory):
        self._own.save_pretrained(directory)


def stand_in(own, library="paddlenlp"):
    """An object of ``library`` that holds and does what ``own``, a text encoder or tokenizer of ppsd3, does."""
    base = _Tower if isinstance(own, nn.Layer) else _Tokenizer
    return type(type(own).__name__, (base,), {"__module__": f"{library}.transformers.modeling"})(own)


def same(one, other):
    """Whether two networks have the same tensors."""
    tensors, others = one.state_dict(), other.state_dict()
    return list(tensors) == list(others) and all(
        np.array_equal(tensor.astype("float32").numpy(), others[name].astype("float32").numpy())
        for name, tensor in tensors.items()
    )
