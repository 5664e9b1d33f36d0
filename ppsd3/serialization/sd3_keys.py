"""Names in the files of Stability AI, ComfyUI and PaddleNLP <-> names in diffusers and transformers, both ways.

One table for each network, read from left to right and from right to left. In a name, ``#`` is a number, ``$`` the last
block's number, ``~`` a number counted from the other end on the other side, and ``*`` is "weight" or "bias". Where one
side has three names, the other has the three tensors joined along their rows. Earlier lines come first.

Sources: the state dicts of Stability-AI/sd3.5 (``mmditx.py``, ``sd3_impls.py``, ``other_impls.py``), of mlfoundations/
open_clip, of ComfyUI (prefixes, scaled 8-bit floats), of PaddleNLP 3.0.0b4, and of diffusers and transformers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Union

from ..utils.errors import CheckpointFormatError
from .rearranged import Piece, Recipe


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
        original, diffusers: templates; at most one side has more than one.
        change: "" for no change; "swap": the two halves of the rows change places; "convolution": the original's
            weight is a 1x1 convolution; "transposed": the original's weight is [in, out].
    """

    original: tuple[str, ...]
    diffusers: tuple[str, ...]
    change: str = ""


def _rule(original: str | tuple[str, ...], diffusers: str | tuple[str, ...], change: str = "") -> Rule:
    original, diffusers = (side if isinstance(side, tuple) else (side,) for side in (original, diffusers))
    return Rule(original, diffusers, change)


def _qkv(template):
    """Templates of the Q, K and V projections, e.g. of ``"attn.to_?.*"``."""
    return tuple(template.replace("?", letter) for letter in "qkv")


_MMDIT = (
    _rule("pos_embed", "pos_embed.pos_embed"),
    _rule("x_embedder.proj.*", "pos_embed.proj.*"),
    _rule("context_embedder.*", "context_embedder.*"),
    _rule("t_embedder.mlp.0.*", "time_text_embed.timestep_embedder.linear_1.*"),
    _rule("t_embedder.mlp.2.*", "time_text_embed.timestep_embedder.linear_2.*"),
    _rule("y_embedder.mlp.0.*", "time_text_embed.text_embedder.linear_1.*"),
    _rule("y_embedder.mlp.2.*", "time_text_embed.text_embedder.linear_2.*"),
    # The original's final norms chunk their modulation as (shift, scale), diffusers' AdaLayerNormContinuous as
    # (scale, shift). Such a norm ends each stream: the image's in the final layer, the text's in the last block.
    _rule("final_layer.adaLN_modulation.1.*", "norm_out.linear.*", "swap"),
    _rule("final_layer.linear.*", "proj_out.*"),
    _rule("joint_blocks.$.context_block.adaLN_modulation.1.*", "transformer_blocks.$.norm1_context.linear.*", "swap"),
    _rule("joint_blocks.#.context_block.adaLN_modulation.1.*", "transformer_blocks.#.norm1_context.linear.*"),
    _rule("joint_blocks.#.context_block.attn.qkv.*", _qkv("transformer_blocks.#.attn.add_?_proj.*")),
    _rule("joint_blocks.#.context_block.attn.ln_q.weight", "transformer_blocks.#.attn.norm_added_q.weight"),
    _rule("joint_blocks.#.context_block.attn.ln_k.weight", "transformer_blocks.#.attn.norm_added_k.weight"),
    _rule("joint_blocks.#.context_block.attn.proj.*", "transformer_blocks.#.attn.to_add_out.*"),
    _rule("joint_blocks.#.context_block.mlp.fc1.*", "transformer_blocks.#.ff_context.net.0.proj.*"),
    _rule("joint_blocks.#.context_block.mlp.fc2.*", "transformer_blocks.#.ff_context.net.2.*"),
)


def _image_block(original, diffusers):
    """Rules for the part of a block that works on image tokens, which is all that a ControlNet's blocks have."""
    return (
        _rule(original + "adaLN_modulation.1.*", diffusers + "norm1.linear.*"),
        *(
            rule
            for attention in ("attn.", "attn2.")  # attn2: the dual attention of SD3.5-medium
            for rule in (
                _rule(f"{original}{attention}qkv.*", _qkv(f"{diffusers}{attention}to_?.*")),
                _rule(f"{original}{attention}ln_q.weight", f"{diffusers}{attention}norm_q.weight"),
                _rule(f"{original}{attention}ln_k.weight", f"{diffusers}{attention}norm_k.weight"),
                _rule(f"{original}{attention}proj.*", f"{diffusers}{attention}to_out.0.*"),
            )
        ),
        _rule(original + "mlp.fc1.*", diffusers + "ff.net.0.proj.*"),
        _rule(original + "mlp.fc2.*", diffusers + "ff.net.2.*"),
    )


_VAE_RESNETS = (
    ("encoder.down.#.block.#.", "encoder.down_blocks.#.resnets.#."),
    ("encoder.mid.block_1.", "encoder.mid_block.resnets.0."),
    ("encoder.mid.block_2.", "encoder.mid_block.resnets.1."),
    ("decoder.mid.block_1.", "decoder.mid_block.resnets.0."),
    ("decoder.mid.block_2.", "decoder.mid_block.resnets.1."),
    ("decoder.up.~.block.#.", "decoder.up_blocks.~.resnets.#."),
)
_VAE = (
    *(
        _rule(original + part, diffusers + part)
        for original, diffusers in _VAE_RESNETS
        for part in ("norm1.*", "conv1.*", "norm2.*", "conv2.*")
    ),
    *(_rule(o + "nin_shortcut.*", d + "conv_shortcut.*") for o, d in _VAE_RESNETS),
    _rule("encoder.down.#.downsample.conv.*", "encoder.down_blocks.#.downsamplers.0.conv.*"),
    _rule("decoder.up.~.upsample.conv.*", "decoder.up_blocks.~.upsamplers.0.conv.*"),
    *(
        rule
        for side in ("encoder.", "decoder.")
        for rule in (
            _rule(side + "conv_in.*", side + "conv_in.*"),
            _rule(side + "norm_out.*", side + "conv_norm_out.*"),
            _rule(side + "conv_out.*", side + "conv_out.*"),
            _rule(side + "mid.attn_1.norm.*", side + "mid_block.attentions.0.group_norm.*"),
            *(
                _rule(side + f"mid.attn_1.{o}.*", side + f"mid_block.attentions.0.{d}.*", "convolution")
                for o, d in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
            ),
        )
    ),
    _rule("quant_conv.*", "quant_conv.*"),
    _rule("post_quant_conv.*", "post_quant_conv.*"),
)

_OPEN_CLIP = (
    _rule("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    _rule("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    _rule("ln_final.*", "text_model.final_layer_norm.*"),
    _rule("text_projection", "text_projection.weight", "transposed"),
    _rule("transformer.resblocks.#.ln_1.*", "text_model.encoder.layers.#.layer_norm1.*"),
    _rule("transformer.resblocks.#.ln_2.*", "text_model.encoder.layers.#.layer_norm2.*"),
    _rule("transformer.resblocks.#.attn.in_proj_*", _qkv("text_model.encoder.layers.#.self_attn.?_proj.*")),
    _rule("transformer.resblocks.#.attn.out_proj.*", "text_model.encoder.layers.#.self_attn.out_proj.*"),
    _rule("transformer.resblocks.#.mlp.c_fc.*", "text_model.encoder.layers.#.mlp.fc1.*"),
    _rule("transformer.resblocks.#.mlp.c_proj.*", "text_model.encoder.layers.#.mlp.fc2.*"),
)

# PaddleNLP's CLIP, whose linear weights are [in, out] besides, as all of Paddle's.
PADDLENLP_CLIP = (
    _rule("text_model.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    _rule("text_model.positional_embedding.weight", "text_model.embeddings.position_embedding.weight"),
    _rule("text_model.ln_final.*", "text_model.final_layer_norm.*"),
    _rule("text_projection", "text_projection.weight"),
    _rule("text_model.transformer.layers.#.norm1.*", "text_model.encoder.layers.#.layer_norm1.*"),
    _rule("text_model.transformer.layers.#.norm2.*", "text_model.encoder.layers.#.layer_norm2.*"),
    _rule("text_model.transformer.layers.#.linear1.*", "text_model.encoder.layers.#.mlp.fc1.*"),
    _rule("text_model.transformer.layers.#.linear2.*", "text_model.encoder.layers.#.mlp.fc2.*"),
    *(
        _rule(f"text_model.transformer.layers.#.self_attn.{part}.*", f"text_model.encoder.layers.#.self_attn.{part}.*")
        for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    ),
)

# In the place of a table: the file already has the names of diffusers or transformers.
_SAME = "same"

Table = Union[str, "tuple[Rule, ...]"]

# (kind, a regular expression of names that only this layout has, table). The first layout of a kind is the one that
# is written.
LAYOUTS = (
    (
        "transformer",
        r"^joint_blocks\.\d+\.",
        (*_MMDIT, *_image_block("joint_blocks.#.x_block.", "transformer_blocks.#.")),
    ),
    (
        "controlnet",  # Stability's ControlNets for SD3.5-large; others are published in diffusers' layout
        r"^transformer_blocks\.\d+\.attn\.qkv\.",
        (
            *_image_block("transformer_blocks.#.", "transformer_blocks.#."),
            *(
                _rule(name, name)
                for name in (
                    "controlnet_blocks.#.*",
                    "pos_embed_input.proj.*",
                    "pos_embed.proj.*",
                    "time_text_embed.timestep_embedder.linear_#.*",
                    "time_text_embed.text_embedder.linear_#.*",
                )
            ),
        ),
    ),
    ("controlnet", r"^controlnet_blocks\.", _SAME),
    ("transformer", r"^transformer_blocks\.\d+\.attn\.add_q_proj\.", _SAME),
    ("vae", r"^(encoder\.down|decoder\.up)\.\d+\.", _VAE),
    ("vae", r"^(encoder\.down|decoder\.up)_blocks\.\d+\.", _SAME),
    ("clip", r"^text_model\.(embeddings|encoder|final_layer_norm)\.", _SAME),
    ("clip", r"^transformer\.resblocks\.", _OPEN_CLIP),
    ("clip", r"^text_model\.(token_embedding|transformer|ln_final)\.", PADDLENLP_CLIP),
    ("t5", r"^(encoder\.block\.\d+\.layer\.|shared\.)", _SAME),
)


def find_layout(names: Iterable[str]) -> tuple[str, Table] | tuple[None, None]:
    """``(kind, table)`` of the network whose tensors have these ``names``; ``(None, None)`` if no layout matches."""
    for kind, mark, table in LAYOUTS:
        if any(re.match(mark, name) for name in names):
            return kind, table
    return None, None


def is_diffusers(names: Iterable[str]) -> bool:
    """Whether the names of a network's tensors are diffusers' or transformers'."""
    return find_layout(names)[1] is _SAME


def original_table(kind: str, names: Iterable[str] = ()) -> Table:
    """The table of the layout in which this ``kind`` of network is published; ``names`` are diffusers'."""
    if kind == "controlnet" and "context_embedder.weight" in names:
        return _SAME  # ControlNets that read text come from InstantX and Alimama, in diffusers' layout
    return next(table for known, _, table in LAYOUTS if known == kind)


def to_diffusers(names: Iterable[str], table: Table, path: str) -> dict[str, Recipe]:
    """Diffusers name -> :class:`Recipe`, for a network whose tensors have the original ``names``.

    Raises:
        CheckpointFormatError: ``table`` lacks one of the names; the message calls the file ``path``.
    """
    return _translate(names, table, path, "original", "diffusers")


def to_original(names: Iterable[str], table: Table, path: str) -> dict[str, Recipe]:
    """Original name -> :class:`Recipe`: the inverse of :func:`to_diffusers`."""
    return _translate(names, table, path, "diffusers", "original")


def _translate(names: Iterable[str], table: Table, path: str, here: str, there: str) -> dict[str, Recipe]:
    names = list(names)
    if table is _SAME:
        return {name: Recipe((Piece(name),)) for name in names}
    ends = _Ends.of(names)
    parts, unknown = {}, []
    for name in names:
        found = _find(name, table, here, ends)
        if found is None:
            unknown.append(name)
            continue
        rule, position, values = found
        targets = getattr(rule, there)
        for index, template in enumerate(targets):
            target = _fill(template, values, ends)
            form = _form(rule, there, target)
            pieces = {position: _pieces(rule, name, index, len(targets))}
            parts.setdefault(target, (form, len(getattr(rule, here)), {}))[2].update(pieces)
    if unknown:
        listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise CheckpointFormatError(
            f"{path} has tensors that no Stable Diffusion 3 has: {listed}. Check that it is one, and of the kind that "
            "it is loaded as."
        )
    recipes = {}
    for target, (form, count, pieces) in parts.items():
        if len(pieces) != count:
            raise CheckpointFormatError(
                f"{path} holds {len(pieces)} of the {count} tensors that make up {target}. Download or write it again."
            )
        recipes[target] = Recipe(tuple(piece for i in sorted(pieces) for piece in pieces[i]), form)
    return recipes


def _pieces(rule, name, index, count):
    if rule.change == "swap":
        return Piece(name, 1, 2), Piece(name, 0, 2)
    return (Piece(name, index, count),)


def _form(rule, there, target):
    if rule.change == "convolution" and target.endswith(".weight"):
        return "linear" if there == "diffusers" else "convolution"
    return "transposed" if rule.change == "transposed" else "same"


@dataclass(frozen=True)
class _Ends:
    """``last``: number of the last block; ``last_up``: of the decoder's last resolution."""

    last: int
    last_up: int

    @classmethod
    def of(cls, names):
        return cls(
            _largest(r"^(?:joint|transformer)_blocks\.(\d+)\.", names),
            _largest(r"^decoder\.up(?:_blocks)?\.(\d+)\.", names),
        )


def _largest(pattern, names):
    return max((int(match.group(1)) for match in (re.match(pattern, name) for name in names) if match), default=0)


def _find(name, table, side, ends):
    """(rule, which of its templates on this side, the values of its placeholders), or None."""
    for rule in table:
        for position, template in enumerate(getattr(rule, side)):
            match = _pattern(template.replace("$", str(ends.last))).fullmatch(name)
            if match:
                return rule, position, match.groups()
    return None


@functools.cache
def _pattern(template):
    escaped = re.escape(template).replace(r"\#", "#").replace(r"\~", "~").replace(r"\*", "*")
    return re.compile(escaped.replace("#", r"(\d+)").replace("~", r"(\d+)").replace("*", "(weight|bias)"))


def _fill(template, values, ends):
    """``template`` with its placeholders, in order, replaced."""
    values = iter(values)

    def value(match):
        mark = match.group()
        if mark == "$":
            return str(ends.last)
        given = next(values)
        return str(ends.last_up - int(given)) if mark == "~" else given

    return re.sub(r"[#~$*]", value, template)
