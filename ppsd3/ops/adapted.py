"""A layer with adapters around it: the seam that LoRA and its relatives use.

The layer inside stays what it is, whether in float, in int8 or held in 16 bits. An adapter is a layer that says what to
add to the output or to the weights (:class:`Adapter`); which formats exist, and how their files are called, is known in
:mod:`ppsd3.adapters` alone.

An adapted layer has no ``weight``: code that reads the weights of a layer directly has to ask for a plain layer's type,
as everything in ``ops`` does, and otherwise call the layer. What reads one without asking fails, instead of leaving the
adapters out without a word.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Collection, Mapping, Sequence
from contextvars import ContextVar
from functools import reduce
from types import MappingProxyType
from typing import Any, Callable

import paddle
from paddle import Tensor, nn

from ..utils.contexts import held
from ..utils.errors import InputError
from ..utils.paddle_internals import no_grad, share_memory, without_memory

# Factors of the strengths in layers, for the call that runs in this context: each thread has its own.
_scales: ContextVar[Mapping[AdaptedLayer, float]] = ContextVar("adapter_scales", default=MappingProxyType({}))


class Adapter(nn.Layer):
    """What one adapter adds to a layer."""

    def added(self, x: Tensor, y: Tensor, layer: nn.Layer, strength: float) -> Tensor:
        """What to add to ``y``.

        Args:
            x: the layer's input, ``[..., in_features]``.
            y: what the layer makes of it, bias included, ``[..., out_features]``.
            layer: the linear layer.
            strength: the adapter's weight.
        """
        raise NotImplementedError

    def weight_change(self, weight: Tensor, strength: float) -> Tensor:
        """The float32 tensor of the shape of ``weight`` (float32) which does the same, added to it."""
        raise NotImplementedError

    def bias_change(self, strength: float) -> Tensor | None:
        """The float32 vector [out_features] which does the rest, added to the bias; None for nothing."""
        return


class AdaptedLayer(nn.Layer):
    """A layer and its adapters; subclasses define ``forward``.

    Args:
        layer: of the class that the subclass is for.

    Attributes:
        base_layer: that layer; with fused adapters its weights contain them.
        adapters: name -> :class:`Adapter`.
        strengths: name of each adapter -> strength.
        active: names of the adapters that act, in the order in which they are added.
        enabled: whether they act at all.
        fused: name of an adapter in the weights -> strength there.
    """

    def __init__(self, layer: nn.Layer) -> None:
        super().__init__()
        self.base_layer: Any = layer
        self.adapters: Any = nn.LayerDict()
        self.strengths: dict[str, float] = {}
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self.fused: dict[str, float] = {}
        self._without = None  # weight and bias without the fused adapters

    @property
    def scale(self) -> float:
        """Factor of all strengths in the present context; :func:`scaled_adapters` sets it."""
        return _scales.get().get(self, 1.0)

    @property
    def pending(self) -> list[str]:
        """Names of the active adapters that are not in the weights."""
        return [name for name in self.active if name not in self.fused] if self.enabled else []

    @no_grad
    def merged(self, strengths: dict[str, float]) -> tuple[Tensor, Tensor | None]:
        """float32 (weight, bias or None) with the adapters of ``strengths`` in them and no others."""
        tensors, bias = self._originals()
        weight = dense_weight(self.base_layer, tensors)
        change, bias_change = self._changes(weight, strengths)
        if bias_change is not None:
            assert bias is not None, "see lacks_bias"
            bias = bias.astype("float32") + bias_change
        return weight + change, bias

    def lacks_bias(self, names: Collection[str]) -> bool:
        """Whether one of these adapters has a bias and the layer has none, so that it cannot be fused."""
        biases = [self.adapters[name].bias_change(1.0) for name in names]
        return getattr(self.base_layer, "bias", None) is None and any(bias is not None for bias in biases)

    def _changes(self, weight: Tensor, strengths: Mapping[str, float]) -> tuple[Tensor, Tensor | None]:
        """(what the adapters of ``strengths`` add to the float32 ``weight``, to the bias or None)."""
        changes = [self.adapters[name].weight_change(weight, s) for name, s in strengths.items()]
        biases = [self.adapters[name].bias_change(s) for name, s in strengths.items()]
        biases = [change for change in biases if change is not None]
        return reduce(operator.add, changes), reduce(operator.add, biases) if biases else None

    @no_grad
    def fuse(self, strengths: dict[str, float], merged: tuple[Tensor, Tensor | None] | None = None) -> None:
        """Puts the adapters of ``strengths`` into the weights, which hold these and no others then."""
        layer = self.base_layer
        weight, bias = self.merged(strengths) if merged is None else merged
        self._without = self._originals()
        store_weight(layer, weight)
        if bias is not None:
            put_values(layer.bias, bias)
        self.fused = dict(strengths)

    @no_grad
    def unfuse(self) -> None:
        """Gives the layer the very weights again that it had."""
        if self._without is None:
            return
        weight, bias = self._without
        for name, tensor in weight.items():
            share_memory(tensor, getattr(self.base_layer, name))
        if bias is not None:
            share_memory(bias, self.base_layer.bias)
        self._without, self.fused = None, {}

    def _originals(self):
        """({"weight": ..., "weight_scale": ...}, bias) as they are without fused adapters.

        They share the layer's memory: fusing gives the layer new memory, and leaves what was mapped from a file there.
        """
        if self._without is not None:
            return self._without
        layer = self.base_layer
        names = [name for name in ("weight", "weight_scale") if getattr(layer, name, None) is not None]
        bias = getattr(layer, "bias", None)
        return {name: alias(getattr(layer, name)) for name in names}, None if bias is None else alias(bias)

    def extra_repr(self) -> str:
        acting = {name: self.strengths[name] * self.scale for name in self.pending}
        return f"adapters={acting}, fused={self.fused}"


class AdaptedLinear(AdaptedLayer):
    """``layer(x)`` plus what each active adapter adds to it, for a linear layer of ``ops``."""

    @property
    def in_features(self) -> int:
        """Of the linear layer."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """Of the linear layer."""
        return self.base_layer.out_features

    @property
    def compute_dtype(self) -> paddle.dtype:
        """dtype of its input and output."""
        return self.base_layer.compute_dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.adapt(x, self.base_layer(x))

    def adapt(self, x: Tensor, y: Tensor) -> Tensor:
        """``y``, which the layer made of ``x``, plus what the adapters add."""
        total, scale = y, self.scale
        for name in self.pending:
            strength = self.strengths[name] * scale
            if strength != 0:
                total = total + self.adapters[name].added(x, y, self.base_layer, strength)
        return total


class AdaptedWeights(AdaptedLayer):
    """``layer(x)`` plus what the layer makes of ``x`` with the changes in the place of its weight and bias, for a
    convolution or a norm: their outputs are linear in both, and these are small."""

    def forward(self, x: Tensor, upsample: bool = False, added: Tensor | None = None) -> Tensor:
        y = self.through(lambda layer: layer(x, upsample) if upsample else layer(x))
        return y if added is None else y + added

    def through(self, compute: Callable[[Any], Tensor]) -> Tensor:
        """``compute(layer)``, which is linear in the layer's weight and bias, with what the adapters add."""
        y, scale = compute(self.base_layer), self.scale
        strengths = {name: self.strengths[name] * scale for name in self.pending}
        strengths = {name: strength for name, strength in strengths.items() if strength != 0}
        if not strengths:
            return y
        layer = self.base_layer
        weight, bias = self._changes(layer.weight.astype("float32"), strengths)
        bias = None if bias is None else bias.astype(layer.weight.dtype)
        return y + compute(_with_weights(layer, weight.astype(layer.weight.dtype), bias))


def _with_weights(layer, weight, bias):
    """A layer of the same kind and settings as ``layer``, with other weights and without what runs around its call."""
    other = object.__new__(type(layer))
    hooks = {name: type(hooks)() for name, hooks in vars(layer).items() if name.endswith("_hooks")}
    vars(other).update(vars(layer), **hooks, _parameters={}, weight=weight, bias=bias)
    vars(other).pop("forward", None)
    return other


def base_of(layer: nn.Layer) -> Any:
    """The layer inside, or ``layer`` itself."""
    return layer.base_layer if isinstance(layer, AdaptedLayer) else layer


def adapt(layer: nn.Layer, x: Tensor, y: Tensor) -> Tensor:
    """``y``, which the weights of ``layer`` made of ``x``, with what adapters around the layer add."""
    return layer.adapt(x, y) if isinstance(layer, AdaptedLinear) else y


def adapted_layers(network: nn.Layer) -> dict[str, AdaptedLayer]:
    """name -> :class:`AdaptedLayer` of ``network``."""
    return {name: layer for name, layer in network.named_sublayers() if isinstance(layer, AdaptedLayer)}


def adapter_scale(network: nn.Layer) -> float:
    """The factor that :func:`scaled_adapters` has set in the present context, 1 outside of it."""
    return next((layer.scale for layer in network.sublayers() if isinstance(layer, AdaptedLayer)), 1.0)


def scaled_adapters(
    networks: Sequence[nn.Layer], scale: float | None, argument: str
) -> contextlib.AbstractContextManager[None]:
    """Multiplies the strength of all adapters of ``networks`` by ``scale`` as long as the block lasts, for what runs in
    its context: the networks do not change, so other threads see nothing of it.

    Raises:
        InputError: ``scale`` is no number, or not 1 though there is no adapter; names ``argument``.
    """
    if scale is None or (scale == 1 and not isinstance(scale, bool)):
        return contextlib.nullcontext()
    return held(_scales, _scaled(networks, scale, argument))


def _scaled(networks, scale, argument):
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise InputError(
            f"{argument} is {scale!r}; it is a number, by which the strength of LoRA layers is multiplied."
        )
    layers = [layer for network in networks for layer in adapted_layers(network).values()]
    if not layers:
        raise InputError(f"{argument} is {scale}: it scales LoRA layers, and none is loaded. Leave it out.")
    return {**_scales.get(), **{layer: layer.scale * scale for layer in layers}}


def own_sublayers(network: nn.Layer) -> list[tuple[str, nn.Layer]]:
    """[(name, layer)] of ``network`` without what an adapter has attached to the whole of it (``_attachments``)."""
    return [(name, layer) for name, layer in network.named_sublayers() if not is_attached(network, name)]


def is_attached(network: nn.Layer, name: str) -> bool:
    """Whether what is called ``name`` belongs to something attached to the whole of ``network``, e.g. an IP-adapter."""
    return name.split(".")[0] in getattr(network, "_attachments", ())


def checkpoint_tensors(network: nn.Layer) -> dict[str, Tensor]:
    """``state_dict()`` of ``network`` as a checkpoint has it: without adapters, but with what is fused.

    Raises:
        InputError: an active adapter is not in the weights, so that what is saved would not be what is used.
    """
    layers = adapted_layers(network)
    pending = sorted({name for layer in layers.values() for name in layer.pending})
    if pending:
        raise InputError(
            f"This {type(network).__name__} has the adapters {', '.join(pending)} beside its weights. Save them with "
            "save_lora_weights(), and before saving the network call fuse_lora() to put them into the weights, or "
            "disable_lora() or unload_lora_weights() to save it without."
        )
    tensors = {name: tensor for name, tensor in network.state_dict().items() if not is_attached(network, name)}
    for name in layers:
        tensors = {
            key.replace(name + ".base_layer.", name + ".", 1) if key.startswith(name + ".") else key: tensor
            for key, tensor in tensors.items()
            if not key.startswith(name + ".adapters.")
        }
    return tensors


def dense_weight(layer: Any, tensors: dict[str, Any] | None = None) -> Tensor:
    """The float32 weight that ``layer`` multiplies by, of a linear layer the matrix [out_features, in_features].

    Args:
        tensors: "weight" and, of an int8 layer, "weight_scale", in place of the layer's own.
    """
    if tensors is None:
        tensors = {"weight": layer.weight, "weight_scale": getattr(layer, "weight_scale", None)}
    weight, scale = tensors["weight"].astype("float32"), tensors.get("weight_scale")
    return weight if scale is None else weight * scale.astype("float32").unsqueeze(1)


def store_weight(layer: Any, weight: Tensor) -> None:
    """Makes ``layer`` multiply by ``weight`` (float32), rounded as the layer holds its weights, in new memory."""
    if getattr(layer, "weight_scale", None) is None:
        put_values(layer.weight, weight)
        return
    from .quantized import quantize_weight

    levels, scale = quantize_weight(weight)
    share_memory(levels, layer.weight)
    put_values(layer.weight_scale, scale)


def put_values(slot: Tensor, values: Tensor) -> None:
    """Gives ``slot`` new memory with ``values`` in the slot's dtype."""
    share_memory(values.astype(slot.dtype), slot)


def alias(tensor: Tensor) -> Tensor:
    """Another tensor over the same memory, which keeps it when ``tensor`` is given other memory."""
    other = without_memory(tensor.shape)
    share_memory(tensor, other)
    return other


def set_aside(network: nn.Layer) -> list[Tensor]:
    """The weights that fused layers of ``network`` have without their adapters, for :meth:`AdaptedLayer.unfuse`."""
    fused = [layer._without for layer in network.sublayers() if isinstance(layer, AdaptedLayer) and layer._without]
    return [tensor for weights, bias in fused for tensor in (*weights.values(), bias) if tensor is not None]
