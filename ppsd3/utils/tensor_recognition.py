"""What a file or a configuration of another model is, by the names of tensors and of classes.

Matching takes time linear in the names, which may be hostile: :mod:`ppsd3.utils.signatures` has parts of names, which
are looked for in all names at once, and no regular expressions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import signatures
from .signatures import Marks, Model

_TO_K = ("attn2", "to_k")


class Found(NamedTuple):
    """What something is.

    Attributes:
        what: a predicate, e.g. "is a GGUF file".
        remedy: whole sentences.
        role: what it can be loaded as, e.g. "adapter"; empty if it cannot.
    """

    what: str
    remedy: str
    role: str = ""


class _Tensors:
    """The names of tensors in one text, as :data:`~ppsd3.utils.signatures.Marks` want them, and the shapes."""

    def __init__(self, tensors: Mapping[str, Sequence[Any]]) -> None:
        self.tensors = tensors
        self.names = "\n" + "\n".join(tensors) + "\n"
        self.flat = self.names.lower().replace(".", "_")

    def have(self, marks: Marks, exact: bool = False) -> bool:
        """Whether all parts of one of ``marks`` are in the names; ``exact`` leaves dots and capitals in these."""
        text = self.names if exact else self.flat
        return any(all(part in text for part in parts) for parts in marks)

    def shape(self, *parts: str) -> tuple[int, ...]:
        """Of the first tensor whose name has all of ``parts``; () if none has, or if its shape is not known."""
        found = (info[1] for name, info in self.tensors.items() if all(part in name for part in parts))
        return next((tuple(shape) for shape in found if len(shape) > 1), ())


def of_tensors(tensors: Mapping[str, Sequence[Any]]) -> Found | None:
    """What has these tensors, name -> (dtype, shape, ...); None for what is not known."""
    known = _Tensors(tensors)
    quantized = next((how for how, marks in signatures.QUANTIZED if known.have(marks, exact=True)), None)
    # A quantized network may have a part of low rank, named as a LoRA's.
    part = None if quantized else next((part for part, marks in signatures.PARTS if known.have(marks)), None)
    model = _ip_adapter_model(known) if part == "an IP-adapter" else _model(known, part)
    how = f", quantized by {quantized}" if quantized else ""
    if part is not None and (model is None or not signatures.OWN_PARTS[part][1]):
        return Found(f"is {part}", *signatures.OWN_PARTS[part])
    if model is not None and part is not None:
        remedy = (
            f"Use it with {model.name} (diffusers' {model.pipeline}); here use {part} for Stable Diffusion 3 or 3.5."
        )
        return Found(f"is {part} for {model.name}, judged by the names of its tensors", remedy)
    if model is not None:
        return Found(f"is a network of {model.name}{how}, judged by the names of its tensors", use_diffusers(model))
    if quantized:
        return Found(f"is{how[1:]}, judged by the names of its tensors", signatures.ORIGINAL)
    for what, marks, remedy in signatures.NETWORKS:
        if known.have(marks):
            return Found(f"is {what}", remedy)
    return _own_network(known)


def of_class(name: object) -> Found | None:
    """What a class of another model is, by its name; None for those of Stable Diffusion 3 and for unknown ones."""
    if not isinstance(name, str) or name.startswith(("StableDiffusion3", "SD3")):
        return None
    for model in signatures.MODELS:
        if name.startswith(model.classes):
            pipeline = name if name.endswith("Pipeline") else model.pipeline
            return Found(f"is for {model.name} ({name[:80]})", use_diffusers(model._replace(pipeline=pipeline)))
    return None


def use_diffusers(model: Model) -> str:
    """The remedy for what is of another model."""
    return (
        f"ppsd3 draws with Stable Diffusion 3 and 3.5, e.g. {signatures.PUBLISHED}; {model.name} is drawn by "
        f"diffusers' {model.pipeline}."
    )


def _model(known: _Tensors, part: str | None) -> Model | None:
    width = _text_width(known)
    for model in signatures.MODELS:
        fits = not model.widths or width is None
        if (fits and known.have(model.marks)) or width in model.widths:
            return model
    # LoRA of attentions alone, whose names FLUX.1 and Qwen-Image share with Stable Diffusion 3; its widths are others.
    shape = known.shape("transformer_blocks", "attn", "to_q", "down") or known.shape(
        "transformer_blocks", "to_q", "lora_A"
    )
    return signatures.model("FLUX.1") if part == "a LoRA" and shape[1:] == (3072,) else None


def _text_width(known: _Tensors) -> int | None:
    """Width of the texts that the cross-attention of a UNet reads; None if there is none, or no model has such."""
    if not known.have(signatures.UNET):
        return None
    shapes = (known.shape(*_TO_K, end) for end in ("lora_A", "down", "hada_w1_b", "to_k.weight"))
    width = next((shape[1] for shape in shapes if shape), None)
    return width if any(width in model.widths for model in signatures.MODELS) else None


def _ip_adapter_model(known: _Tensors) -> Model | None:
    if known.have((("image_proj_time_embedding_",), ("image_proj_layers_0_adaln",))):
        return None  # Stable Diffusion 3's
    if known.have((("double_blocks_",), ("ip_adapter_double_",))):
        return signatures.model("FLUX.1")
    width = (known.shape("to_k_ip") or (0,))[-1]
    return signatures.model(signatures.IP_WIDTHS[width]) if width in signatures.IP_WIDTHS else None


def _own_network(known: _Tensors) -> Found | None:
    """A network as Stable Diffusion 3 has them, or a relative of one, told by its size."""
    for what, marks, load, role in signatures.OWN:
        if known.have(marks):
            return _of_other_size(known, what) or Found(f"is {what}", load, role)
    names = list(known.tensors)
    if len(names) == 1 and "." not in names[0] and len(known.tensors[names[0]][1]) in (1, 2):
        return Found("is a textual inversion", *signatures.WORD)
    return None


def _of_other_size(known: _Tensors, what: str) -> Found | None:
    if what == "a VAE":
        shape = known.shape("decoder.conv_in.")
        if len(shape) == 5:
            return Found("is the VAE of a model for videos", signatures.VAE_REMEDY)
        if len(shape) == 4 and shape[1] in signatures.VAE_CHANNELS:
            whose = signatures.VAE_CHANNELS[shape[1]]
            return Found(f"is the VAE of {whose}, with {shape[1]} channels", signatures.VAE_REMEDY, "network")
    table = known.shape("shared.weight") or known.shape("token_embedding.weight")
    width = table[1] if table else 0
    if width in signatures.TEXT_WIDTHS.get(what, {}):
        other = signatures.TEXT_WIDTHS[what][width]
        return Found(f"is a text encoder of another size ({other}, of width {width})", signatures.ENCODERS)
    return None
