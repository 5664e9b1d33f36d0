"""How libraries lay out the files of a network: diffusers (and transformers), ppdiffusers, PaddleNLP.

ppsd3's models hold every tensor as torch does, so a diffusers checkpoint loads as it is. ppdiffusers and PaddleNLP

- keep the weight of a linear layer as ``[in, out]``,
- write bfloat16 as unsigned 16-bit integers, in which numpy has it,
- name some tensors otherwise (PaddleNLP's CLIP, a table of :mod:`ppsd3.serialization.sd3_keys`),
- and have tensors that torch's classes do not have: a bias in ppdiffusers' final norms, T5's embeddings a second time.

Sources: the state dicts of ppdiffusers 0.29.0 and PaddleNLP 3.0.0b4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from paddle import nn

from ..ops import CastingLinear, Linear
from ..utils.errors import InputError
from .rearranged import Piece, RearrangedCheckpoint, Recipe
from .sd3_keys import PADDLENLP_CLIP, Table, find_layout, to_diffusers, to_original
from .source import TensorSource
from .writers import StoredTensor


@dataclass(frozen=True)
class Layout:
    """How one library writes networks.

    Attributes:
        files: stem of diffusers' or transformers' weight files -> (stem, ``format`` in the metadata).
        libraries: in a pipeline's index, of diffusers' classes and of transformers'.
        version: key and value in a pipeline's index.
        is_paddle: whether linear weights are [in, out], and tensors that only Paddle's classes have are written.
        tables: kind of network -> its names, where they are not diffusers' or transformers'.
    """

    files: Mapping[str, tuple[str, str]]
    libraries: tuple[str, str]
    version: tuple[str, str]
    is_paddle: bool = True
    tables: Mapping[str, Table] = field(default_factory=dict)


LAYOUTS = {
    "diffusers": Layout(
        {"diffusion_pytorch_model": ("diffusion_pytorch_model", "pt"), "model": ("model", "pt")},
        ("diffusers", "transformers"),
        # diffusers reads the version that wrote a file to decide on legacy treatment; 0.42.1 needs none.
        ("_diffusers_version", "0.42.1"),
        is_paddle=False,
    ),
    "ppdiffusers": Layout(
        {"diffusion_pytorch_model": ("diffusion_paddle_model", "pd"), "model": ("model", "np")},
        ("ppdiffusers", "ppdiffusers.transformers"),
        ("_ppdiffusers_version", "0.29.0"),
    ),
    "paddlenlp": Layout(
        {"model": ("model", "np")},
        ("ppdiffusers", "paddlenlp.transformers"),
        ("paddlenlp_version", "3.0.0b4"),
        tables={"clip": PADDLENLP_CLIP},
    ),
}

# The metadata's ``format``: ppdiffusers writes "pd", PaddleNLP "np"; diffusers and transformers write "pt".
_FORMATS = {"pd": "paddle", "np": "paddle", "pt": "torch"}

# A bias of ppdiffusers' final norms -> the linear layer that makes (scale, shift) for it. ``$`` is the last block.
_NORM_BIASES = {
    "norm_out.norm.bias": "norm_out.linear",
    "transformer_blocks.$.norm1_context.norm.bias": "transformer_blocks.$.norm1_context.linear",
}
# A tensor that PaddleNLP writes twice -> the name that is read.
_COPIES = {"encoder.embed_tokens.weight": "shared.weight"}


def find_named_layout(name: str, weights_name: str, owner: str) -> Layout:
    """The layout called ``name``. Raises InputError if there is none, or none for files called ``weights_name``."""
    known = [key for key, layout in LAYOUTS.items() if weights_name in layout.files]
    if name not in known:
        raise InputError(f"layout is {name!r}; a {owner} can be saved as {', '.join(map(repr, known))}.")
    return LAYOUTS[name]


# -------------------------------------------------------------------------------------------------------------- reading


def linear_weights(layer: nn.Layer) -> set[str]:
    """Names in a checkpoint of the weights that linear layers own within ``layer``."""
    return {
        f"{name}.weight".replace(".base_layer.", ".") if name else "weight"  # with adapters around it
        for name, sublayer in layer.named_sublayers(include_self=True)
        if isinstance(sublayer, (Linear, CastingLinear))
    }


def detect_layout(source: TensorSource, layer: nn.Layer) -> str:
    """``"torch"`` or ``"paddle"``, by the shapes of the linear weights.

    If these are all square or contradict one another, :func:`declared_layout` decides.
    """
    present, slots = set(source.keys()), layer.state_dict()
    votes = set()
    for name in linear_weights(layer) & present:
        expected, found = tuple(slots[name].shape), tuple(source.info(name).shape)
        if expected[0] != expected[1]:
            votes.add({expected: "torch", expected[::-1]: "paddle"}.get(found, "neither"))
    return votes.pop() if votes in ({"torch"}, {"paddle"}) else declared_layout(source)


def declared_layout(source: TensorSource) -> str:
    """``"torch"`` or ``"paddle"``, as the file's ``format`` metadata says, or else its name; by default "torch"."""
    by_name = "paddle" if re.search(r"paddle|\.pdparams", os.path.basename(source.path)) else "torch"
    return _FORMATS.get(source.metadata.get("format", ""), by_name)


def own_names(source: TensorSource) -> TensorSource:
    """``source``, a network of any library, with the names of diffusers or transformers; its linear weights stay."""
    names = source.keys()
    kind, table = find_layout(names)
    if table is PADDLENLP_CLIP:
        return RearrangedCheckpoint(source, to_diffusers(names, PADDLENLP_CLIP, source.path), metadata=source.metadata)
    return _without_norm_biases(source) if kind == "transformer" else source


def _without_norm_biases(source):
    """A transformer without the biases of ppdiffusers' final norms: left out where they are zero, else folded.

    A norm with a bias b, modulated as ``(norm(x) + b) (1 + scale) + shift``, is one without whose shift is greater by
    ``b + b scale``; scale and shift are the two halves of what a linear layer makes: ``W_shift += diag(b) W_scale``,
    ``b_shift += b + b * b_scale``.
    """
    names = source.keys()
    biases = {bias: linear for bias, linear in _norm_biases(names).items() if _belong(source, bias, linear)}
    if not biases:
        return source
    recipes: dict[str, Recipe | np.ndarray] = {name: Recipe((Piece(name),)) for name in names if name not in biases}
    for name, linear in biases.items():
        bias = source.load(name, "float32").astype(np.float64)
        if bias.any():
            recipes.update(_folded(source, linear, bias))
    return RearrangedCheckpoint(source, recipes, metadata=source.metadata)


def _norm_biases(names):
    """``_NORM_BIASES`` of a network whose tensors have these names."""
    matches = (re.match(r"transformer_blocks\.(\d+)\.", name) for name in names)
    last = str(max((int(match.group(1)) for match in matches if match), default=0))
    return {bias.replace("$", last): linear.replace("$", last) for bias, linear in _NORM_BIASES.items()}


def _belong(source, bias, linear):
    """Whether these are a norm's bias [D] and the layer that makes 2D values for it; else loading reports them."""
    if not {bias, f"{linear}.weight", f"{linear}.bias"} <= set(source.keys()):
        return False
    shapes = [tuple(source.info(name).shape) for name in (bias, f"{linear}.bias", f"{linear}.weight")]
    width = shapes[0][0] if shapes[0] else 0
    return shapes[:2] == [(width,), (2 * width,)] and sorted(shapes[2]) == [width, 2 * width]


def _folded(source, linear, bias):
    """Weight and bias of ``linear`` with a norm's ``bias`` [D] in them, rounded once, to float32."""
    weight, added = (source.load(f"{linear}.{part}", "float32").astype(np.float64) for part in ("weight", "bias"))
    is_paddle = weight.shape[0] == len(bias)  # [D, 2D], not [2D, D]
    rows = weight.T if is_paddle else weight
    (scale, shift), (scale_bias, shift_bias) = np.split(rows, 2), np.split(added, 2)
    rows = np.concatenate([scale, shift + bias[:, None] * scale])
    added = np.concatenate([scale_bias, shift_bias + bias + bias * scale_bias])
    rows = rows.T if is_paddle else rows
    return {
        f"{linear}.weight": np.ascontiguousarray(rows, np.float32),
        f"{linear}.bias": added.astype(np.float32),
    }


# -------------------------------------------------------------------------------------------------------------- writing


def in_layout(
    source: TensorSource, layer: nn.Layer, layout: Layout, dtype: str | None = None
) -> dict[str, StoredTensor]:
    """The tensors of ``layer``, which ``source`` has under the names of ``layer``, as ``layout`` writes them.

    Args:
        dtype: of floating-point tensors as they are written, see :class:`StoredTensor`.
    """
    names = source.keys()
    if not layout.is_paddle:
        return {name: StoredTensor(source, name, dtype) for name in names}
    kind, _ = find_layout(names)
    linear, table = linear_weights(layer), layout.tables.get(kind or "")
    renamed = to_original(names, table, source.path) if table else {name: Recipe((Piece(name),)) for name in names}
    recipes: dict[str, Recipe | np.ndarray] = {
        name: Recipe(recipe.pieces, "transposed" if recipe.pieces[0].name in linear else "same")
        for name, recipe in renamed.items()
    }
    dtypes = {}
    if kind == "t5":
        recipes.update({copy: Recipe((Piece(name),)) for copy, name in _COPIES.items()})
    if kind == "transformer":
        for bias, layer_name in _norm_biases(names).items():
            info = source.info(f"{layer_name}.bias")
            recipes[bias], dtypes[bias] = np.zeros(info.shape[0] // 2, np.float32), info.dtype
    arranged = RearrangedCheckpoint(source, recipes)
    return {name: StoredTensor(arranged, name, dtype or dtypes.get(name)) for name in arranged.keys()}
