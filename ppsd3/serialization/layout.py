"""Detects whether a checkpoint is in torch's or in Paddle's layout.

ppsd3's models hold every tensor as torch does, so a diffusers checkpoint loads as it is. A checkpoint saved by
ppdiffusers or PaddleNLP differs in one thing: the weight of a linear layer is ``[in, out]``.
"""

from __future__ import annotations

from paddle import nn

from ..ops import Linear
from .source import TensorSource

# ppdiffusers writes "pd", PaddleNLP "np"; diffusers and transformers write "pt".
_FORMATS = {"pd": "paddle", "np": "paddle", "pt": "torch"}


def linear_weights(layer: nn.Layer) -> set[str]:
    """Names of the weights that ``ppsd3.ops.Linear`` layers own within ``layer``."""
    return {
        f"{name}.weight" if name else "weight"
        for name, sublayer in layer.named_sublayers(include_self=True)
        if isinstance(sublayer, Linear)
    }


def detect_layout(source: TensorSource, layer: nn.Layer) -> str:
    """``"torch"`` or ``"paddle"``, by the shapes of the linear weights.

    If these are all square or contradict one another, the file's ``format`` metadata decides; without it, "torch".
    """
    present, slots = set(source.keys()), layer.state_dict()
    votes = set()
    for name in linear_weights(layer) & present:
        expected, found = tuple(slots[name].shape), source.info(name).shape
        if expected[0] != expected[1]:
            votes.add({expected: "torch", expected[::-1]: "paddle"}.get(found, "neither"))
    if votes in ({"torch"}, {"paddle"}):
        return votes.pop()
    return _FORMATS.get(source.metadata.get("format", ""), "torch")
