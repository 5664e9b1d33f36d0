"""Torch or Paddle layout: which of the two a checkpoint is in.

ppsd3's models hold every tensor as torch does, so a diffusers checkpoint loads as it is. A checkpoint saved by
ppdiffusers or PaddleNLP differs in one thing: the weight of a linear layer is ``[in, out]``.
"""

from ..ops import Linear

# ppdiffusers writes "pd", PaddleNLP "np"; diffusers and transformers write "pt".
_FORMATS = {"pd": "paddle", "np": "paddle", "pt": "torch"}


def linear_weights(layer):
    """Names of the weights that ``ppsd3.ops.Linear`` layers own within ``layer``."""
    return {
        f"{name}.weight" if name else "weight"
        for name, sublayer in layer.named_sublayers(include_self=True)
        if isinstance(sublayer, Linear)
    }


def detect_layout(source, layer):
    """``"torch"`` or ``"paddle"``.

    The shapes of the linear weights decide when they can, that is, when those that are not square all say the same;
    next the file's ``format`` metadata; what is still undecided is torch's.
    """
    present, slots = set(source.keys()), layer.state_dict()
    votes = set()
    for name in linear_weights(layer) & present:
        expected, found = tuple(slots[name].shape), source.info(name).shape
        if expected[0] != expected[1]:
            votes.add({expected: "torch", expected[::-1]: "paddle"}.get(found, "neither"))
    if votes in ({"torch"}, {"paddle"}):
        return votes.pop()
    return _FORMATS.get(source.metadata.get("format"), "torch")
