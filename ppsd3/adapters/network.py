"""Adapters of a network: attaching, weighting, fusing and removing them."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import paddle
from paddle import nn

from ..ops import AdaptedLinear, AdaptedWeights, CastingLinear, Linear, QuantizedLinear
from ..ops.adapted import Adapter, adapted_layers, base_of, dense_weight, own_sublayers
from ..quantization import replace_layer
from ..utils import elsewhere
from ..utils.checking import Range, checks_arguments, declared_types, fit
from ..utils.elsewhere import check_argument_names
from ..utils.errors import InputError, UnknownArgumentError
from ..utils.foreign import require_own
from ..utils.paddle_internals import no_grad
from ..utils.threads import changes_networks
from ..utils.types import Names
from .layers import Kronecker, LowRank
from .patterns import NamePattern, PatternTable

if TYPE_CHECKING:
    from typing_extensions import Self

_LINEARS = (Linear, QuantizedLinear, CastingLinear, AdaptedLinear)

# What the published training recipes adapt in the transformer.
ATTENTION_MODULES = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class AdapterConfig:
    """What configurations of adapters to train have in common; subclasses are dataclasses with PEFT's names.

    Attributes:
        target_modules: ends of the names of linear layers and convolutions, a regular expression of whole names, or
            "all-linear". Default: the projections of the transformer's attention.
        exclude_modules: layers that stay as they are, written as ``target_modules``.
    """

    target_modules: Names | None
    exclude_modules: Names | None

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        if len(args) > len(known):
            raise UnknownArgumentError(f"{cls.__name__} takes {len(known)} arguments, and {len(args)} are given.")
        check_argument_names(cls.__name__, settings, known, elsewhere.LORA_SETTINGS)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, kind in declared_types(type(self)).items():
            value = getattr(self, name)
            value = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value  # as PEFT keeps names
            setattr(self, name, fit(name, value, kind))
        if self.target_modules is None:
            self.target_modules = ATTENTION_MODULES

    def matches(self, name: str, layer: Any) -> bool:
        """Whether ``layer``, called ``name``, gets an adapter."""
        if self.target_modules == "all-linear":
            wanted = isinstance(layer, _LINEARS)
        else:  # an expression chooses among layers with a matrix, a list may name a norm, which is then refused
            wanted = _names_module(self.target_modules, name)
            wanted = wanted and not (isinstance(self.target_modules, str) and len(shape_and_dtype(layer)[0]) == 1)
        return wanted and not _names_module(self.exclude_modules, name)

    def make(self, name: str, layer: Any) -> Adapter:
        """A new adapter for ``layer``, which changes nothing before it is trained."""
        raise NotImplementedError


@dataclass
class LoraConfig(AdapterConfig):
    """Configuration of a LoRA to train, with PEFT's names.

    Attributes:
        r: rank; PEFT's own default is 8, as of ``lora_alpha``.
        lora_alpha: the change is scaled by ``lora_alpha / r`` (``/ sqrt(r)`` with ``use_rslora``).
        target_modules: ends of the names of linear layers and convolutions, a regular expression of whole names, or
            "all-linear". Default: the projections of the transformer's attention.
        init_lora_weights: initial A; the initial B is zero. "gaussian": normal with standard deviation 1 / r;
            True: uniform, as PEFT's own default.
        rank_pattern, alpha_pattern: regular expression of a name's end -> rank or alpha of these layers. These and
            the one in ``target_modules`` are matched in linear time, and look neither back nor ahead.
        exclude_modules: layers that stay as they are, written as ``target_modules``.
        lora_dropout: part of a layer's input that its LoRA does not see, while training.
        lora_bias: whether each LoRA trains a bias too.
        bias, modules_to_save, layers_to_transform, layers_pattern, fan_in_fan_out: can only have PEFT's defaults.
        task_type, inference_mode, base_model_name_or_path, revision: notes of PEFT's, without effect.

    Raises:
        InputError: a value that cannot be used.
        UnknownArgumentError: another name.
    """

    r: Annotated[int, Range(1)] = 4
    lora_alpha: Annotated[float, Range()] = 4
    target_modules: Names | None = ATTENTION_MODULES
    init_lora_weights: str | bool = "gaussian"
    use_dora: bool = False
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    exclude_modules: Names | None = None
    lora_dropout: Annotated[float, Range(0, below=1)] = 0.0
    lora_bias: bool = False
    bias: str = "none"
    modules_to_save: Names | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: Names | None = None
    fan_in_fan_out: bool = False
    task_type: Any = None
    inference_mode: bool = False
    base_model_name_or_path: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bias", "modules_to_save", "layers_to_transform", "layers_pattern", "fan_in_fan_out"):
            value = getattr(self, name)
            if (value or type(value) is int) and value != "none":  # layers_to_transform=0 is the first layer
                raise InputError(f"{name} is {value!r}. {elsewhere.LORA_SETTINGS[name]}")
        if self.lora_dropout and self.use_dora:
            raise InputError("use_dora=True takes the length of whole rows, so it has no lora_dropout. Leave one out.")

    def make(self, name: str, layer: Any) -> LowRank:
        """A new :class:`LowRank` for ``layer``, which changes nothing before it is trained."""
        shape, dtype = shape_and_dtype(layer)
        if len(shape) == 1:
            raise InputError(f"target_modules chooses {name}, a norm. A LoRA is trained for layers with a matrix.")
        if self.lora_dropout and len(shape) > 2:
            raise InputError(f"lora_dropout is for linear layers, and {name} is a convolution. Leave out one of them.")
        rank = _table("rank_pattern", self.rank_pattern).get(name, self.r)
        alpha = _table("alpha_pattern", self.alpha_pattern).get(name, self.lora_alpha)
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise InputError(f"r is {rank!r} for {name}; a rank is a whole number, 1 or more.")
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise InputError(f"lora_alpha is {alpha!r} for {name}; it is a number.")
        if self.init_lora_weights == "gaussian":
            down = paddle.randn([rank, *shape[1:]]) / rank
        elif self.init_lora_weights is True:
            bound = math.prod(shape[1:]) ** -0.5
            down = paddle.uniform([rank, *shape[1:]], min=-bound, max=bound)
        else:
            raise InputError(f"init_lora_weights is {self.init_lora_weights!r}; it can be 'gaussian' or True.")
        magnitude = None
        if self.use_dora:
            magnitude = dense_weight(base_of(layer)).flatten(1).square().sum(axis=1).sqrt().astype(dtype)
        scaling = alpha / (math.sqrt(rank) if self.use_rslora else rank)
        up = paddle.zeros([shape[0], rank, *(1 for _ in shape[2:])], dtype)
        bias = paddle.zeros(shape[:1], dtype) if self.lora_bias else None
        made = LowRank(down.astype(dtype), up, scaling=scaling, magnitude=magnitude, bias=bias)
        made.dropout = self.lora_dropout
        return made


@dataclass
class LoKrConfig(AdapterConfig):
    """Configuration of a LoKr to train (LyCORIS, Yeh et al. 2023), with PEFT's names.

    The weight changes by the Kronecker product of a small matrix and a larger one, which is of low rank where that has
    fewer numbers: a fraction of a LoRA's numbers, and a change that can have full rank.

    Attributes:
        r: rank of the second matrix.
        alpha: the change is scaled by ``alpha / r``; without effect where the second matrix is not of low rank.
        target_modules, exclude_modules: as in :class:`LoraConfig`; linear layers only.
        decompose_factor: largest side of the first matrix; -1 for sides near the square roots of the weight's.

    Raises:
        InputError: a value that cannot be used.
        UnknownArgumentError: another name.
    """

    r: Annotated[int, Range(1)] = 8
    alpha: Annotated[float, Range()] = 8
    target_modules: Names | None = ATTENTION_MODULES
    exclude_modules: Names | None = None
    decompose_factor: Annotated[int, Range(-1)] = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decompose_factor == 0 or self.alpha == 0:
            raise InputError("decompose_factor is a number of rows or -1, and alpha is not 0.")

    def make(self, name: str, layer: Any) -> Kronecker:
        """A new :class:`~ppsd3.adapters.layers.Kronecker` for ``layer``, which changes nothing before it is trained."""
        shape, dtype = shape_and_dtype(layer)
        if len(shape) != 2:
            raise InputError(f"target_modules chooses {name}, and a LoKr is trained for linear layers. Exclude it.")
        a, b = (_divisor(size, self.decompose_factor) for size in shape)
        c, d = shape[0] // a, shape[1] // b
        uniform = lambda *sizes: paddle.uniform(sizes, min=-1, max=1) * sizes[1] ** -0.5  # noqa: E731
        first = uniform(a, b).astype(dtype)
        if self.r * (c + d) >= c * d:
            return Kronecker(first, paddle.zeros([c, d], dtype))
        second = uniform(c, self.r).astype(dtype), paddle.zeros([self.r, d], dtype)
        return Kronecker(first, second, scaling=self.alpha / self.r)


def _divisor(size: int, limit: int) -> int:
    """The largest divisor of ``size`` up to its square root and, unless that is -1, ``limit``."""
    most = math.isqrt(size) if limit == -1 else min(limit, math.isqrt(size))
    return next(divisor for divisor in range(most, 0, -1) if size % divisor == 0)


def _names_module(targets: Names | None, name: str) -> bool:
    if isinstance(targets, str):
        return _pattern(targets).matches(name)
    return any(name == target or name.endswith("." + target) for target in targets or ())


_pattern = functools.lru_cache(maxsize=64)(NamePattern)


def _table(name: str, patterns: Any) -> PatternTable:
    if patterns is not None and not isinstance(patterns, Mapping):
        raise InputError(f"{name} is a {type(patterns).__name__}; it is a dict of modules' names.")
    return _read_table(name, tuple((patterns or {}).items()))


@functools.lru_cache(maxsize=64)
def _read_table(name, patterns):
    return PatternTable(dict(patterns), name)


def shape_and_dtype(layer: Any) -> tuple[list[int], paddle.dtype]:
    """Shape of the weight of ``layer``, with adapters or without, and the dtype that it computes in."""
    if isinstance(layer, _LINEARS):
        return [layer.out_features, layer.in_features], layer.compute_dtype
    weight = base_of(layer).weight
    return list(weight.shape), weight.dtype


def linear_layers(network: nn.Layer) -> dict[str, Any]:
    """The linear layers of ``network``, with or without adapters, by name in the checkpoint."""
    return {
        name: layer
        for name, layer in own_sublayers(network)
        if isinstance(layer, _LINEARS) and not name.endswith(".base_layer")
    }


def adaptable_layers(network: nn.Layer) -> dict[str, Any]:
    """What a file can change in ``network``: linear layers, convolutions and norms with weights, by name."""
    return {
        name: layer
        for name, layer in own_sublayers(network)
        if not name.endswith(".base_layer") and (isinstance(layer, (*_LINEARS, AdaptedWeights)) or _has_weights(layer))
    }


def _has_weights(layer: nn.Layer) -> bool:
    """Whether it is a convolution or a norm with weights: of all layers, norms alone have a vector called so."""
    weight = layer.parameters(include_sublayers=False)[:1]
    return isinstance(layer, nn.Conv2D) or bool(weight and weight[0].ndim == 1 and not layer.sublayers())


@checks_arguments
@changes_networks
def add_adapter(network: nn.Layer, config: AdapterConfig, adapter_name: str = "default") -> None:
    """Adds a new LoRA or LoKr to layers of ``network``, and makes its weights the only trainable ones.

    Args:
        network: of any dtype, quantized or with layerwise casting.
        config: a :class:`LoraConfig` or :class:`LoKrConfig`.

    Raises:
        InputError: the name is taken or impossible, no layer matches, or one that can have no LoRA.
    """
    require_own("An adapter", network)
    layers = {name: layer for name, layer in adaptable_layers(network).items() if config.matches(name, layer)}
    with paddle.no_grad():
        chosen = {name: config.make(name, layer) for name, layer in layers.items()}
    if not chosen:
        raise InputError(
            f"target_modules={config.target_modules!r} matches no layer of {type(network).__name__}, e.g. "
            f"{', '.join(list(linear_layers(network))[:3])}."
        )
    attach(network, adapter_name, chosen)
    train_adapter(network, adapter_name)


def train_adapter(network: nn.Layer, adapter_name: str) -> None:
    """Makes the weights of this adapter the only trainable ones of ``network``.

    Raises:
        InputError: there is no such adapter.
    """
    require(network, [adapter_name])
    for parameter in network.parameters():
        parameter.stop_gradient = True
    for adapter in adapters_called(network, adapter_name).values():
        for parameter in adapter.parameters():
            parameter.stop_gradient = False


def adapters_called(network: nn.Layer, name: str) -> dict[str, Any]:
    """The layers of the adapter ``name``, by module."""
    return {
        module: layer.adapters[name]
        for module, layer in adapted_layers(network).items()
        if name in layer.adapters.keys()
    }


def attach(network: nn.Layer, name: str, adapters: Mapping[str, Adapter]) -> None:
    """Adds ``adapters``, by module, to layers of ``network`` under one name; they become active beside the others.

    Raises:
        InputError: the name is taken or impossible.
    """
    check_name(network, name)
    for module, adapter in adapters.items():
        layer = layer_at(network, module)
        if not isinstance(layer, (AdaptedLinear, AdaptedWeights)):
            wrapped = AdaptedLinear(layer) if isinstance(layer, _LINEARS) else AdaptedWeights(layer)
            wrapped.enabled = is_enabled(network)
            replace_layer(network, module, wrapped)
            layer = wrapped
        adapter.training = layer.training
        layer.adapters[name] = adapter
        layer.strengths[name] = 1.0
        layer.active = (*layer.active, name)
    _changed(network)


def layer_at(network: nn.Layer, module: str) -> nn.Layer:
    """The sublayer called ``module``."""
    for part in module.split("."):
        network = getattr(network, part)
    return network


def check_name(network: nn.Layer, name: Any) -> None:
    """Raises InputError if ``name`` is taken or impossible."""
    if not isinstance(name, str) or not name or "." in name:
        raise InputError(f"adapter_name is {name!r}; it has to be a string without dots.")
    if name in adapter_names(network):
        raise InputError(
            f"There is an adapter called {name!r} already. Choose another name, or delete_adapters() first."
        )


def adapter_names(network: nn.Layer) -> list[str]:
    """Names of all adapters, in the order in which they were added."""
    return list(dict.fromkeys(name for layer in adapted_layers(network).values() for name in layer.adapters.keys()))


def active_adapters(network: nn.Layer) -> list[str]:
    """Names of the active adapters; none while adapters are disabled."""
    layers = adapted_layers(network).values()
    return list(dict.fromkeys(name for layer in layers if layer.enabled for name in layer.active))


def fused_adapters(network: nn.Layer) -> list[str]:
    """Names of the adapters that are fused into the weights."""
    return list(dict.fromkeys(name for layer in adapted_layers(network).values() for name in layer.fused))


def is_enabled(network: nn.Layer) -> bool:
    """Whether adapters are enabled; True without adapters."""
    return all(layer.enabled for layer in adapted_layers(network).values())


def set_strengths(network: nn.Layer, strengths: Mapping[str, float]) -> None:
    """Makes the adapters in ``strengths`` the active ones, in this order.

    Raises:
        InputError: a fused adapter would change its strength or become inactive.
    """
    layers = adapted_layers(network).values()
    for layer in layers:
        for name in layer.fused:
            if strengths.get(name) != layer.strengths[name]:
                raise InputError(f"The adapter {name!r} is in the weights. Call unfuse_lora() to change its weight.")
    for layer in layers:
        own = {name: float(strength) for name, strength in strengths.items() if name in layer.strengths}
        layer.strengths.update(own)
        layer.active = tuple(own)
    _changed(network)


def set_enabled(network: nn.Layer, enabled: bool) -> None:
    """Enables or disables the adapters. Fused ones stay in the weights."""
    for layer in adapted_layers(network).values():
        layer.enabled = enabled
    _changed(network)


def strength_of(network: nn.Layer, name: str) -> float:
    """The weight of the adapter ``name``; raises InputError if there is none."""
    require(network, [name])
    return next(layer.strengths[name] for layer in adapted_layers(network).values() if name in layer.strengths)


def name_to_load(networks: Collection[nn.Layer], name: str | None, hotswap: bool) -> str:
    """The name that a loaded adapter gets: ``name``, or else a new one; to exchange one, the only one that is there.

    Raises:
        InputError: it is taken, or impossible; or there is none to exchange.
    """
    there = list(dict.fromkeys(n for network in networks for n in adapter_names(network)))
    if not hotswap:
        name = (
            next(f"default_{i}" for i in range(len(there) + 1) if f"default_{i}" not in there) if name is None else name
        )
        for network in networks:
            check_name(network, name)
        return name
    name = there[0] if name is None and len(there) == 1 else name
    if name is None or name not in there:
        raise InputError(
            f"hotswap=True exchanges an adapter, and adapter_name is {name!r}; there is {', '.join(there) or 'none'}. "
            "Name one of them, or load without hotswap."
        )
    return name


def swap(network: nn.Layer, name: str, adapters: Mapping[str, Adapter]) -> None:
    """Puts ``adapters``, by module, in place of those called ``name``: its weight, and whether it is active, stay.

    Raises:
        InputError: it is fused.
    """
    layers = adapted_layers(network).values()
    strength = next((layer.strengths[name] for layer in layers if name in layer.strengths), 1.0)
    active = all(name in layer.active for layer in layers if name in layer.strengths)
    detach(network, [name])
    attach(network, name, adapters)
    for layer in adapted_layers(network).values():
        if name in layer.strengths:
            layer.strengths[name] = strength
            layer.active = layer.active if active else tuple(n for n in layer.active if n != name)


def detach(network: nn.Layer, names: Collection[str]) -> None:
    """Removes adapters; a layer without adapters is unwrapped.

    Raises:
        InputError: one of them is fused.
    """
    fused = [name for name in fused_adapters(network) if name in names]
    if fused:
        raise InputError(f"{', '.join(fused)} is in the weights. Call unfuse_lora() before deleting it.")
    for module, layer in adapted_layers(network).items():
        for name in [name for name in layer.adapters.keys() if name in names]:
            del layer.adapters[name]
            del layer.strengths[name]
        layer.active = tuple(name for name in layer.active if name not in names)
        if not len(layer.adapters):
            replace_layer(network, module, layer.base_layer)
    _changed(network)


def unload(network: nn.Layer) -> None:
    """Removes all adapters. Fused ones stay in the weights."""
    for module, layer in adapted_layers(network).items():
        replace_layer(network, module, layer.base_layer)
    _changed(network)


@no_grad
def fuse(network: nn.Layer, names: Collection[str] | None = None, scale: float = 1.0, safe: bool = False) -> None:
    """Fuses adapters into the weights. int8 weights are quantized again from the sum, 16-bit ones rounded.

    Args:
        names: default the active ones.
        scale: factor of their strengths.
        safe: check that all sums are finite before anything changes.

    Raises:
        InputError: there is no such adapter, one is fused already, one has a bias for a layer without one, or ``safe``
            and a sum is not finite.
    """
    names = active_adapters(network) if names is None else names
    again = [name for name in names if name in fused_adapters(network)]
    if again:
        raise InputError(f"{', '.join(again)} is in the weights already. Call unfuse_lora() first.")
    chosen = {}
    for module, layer in adapted_layers(network).items():
        new = {name: layer.strengths[name] * scale for name in names if name in layer.strengths}
        if new:
            chosen[module] = layer, {**layer.fused, **new}
    for module, (layer, strengths) in chosen.items():
        if layer.lacks_bias(strengths):
            raise InputError(
                f"{', '.join(names)} has a bias for {module}, which has none, so it cannot be fused. Use it as it is."
            )
    for module, (layer, strengths) in chosen.items() if safe else ():
        if not all(
            bool(part.astype("float32").isfinite().all()) for part in layer.merged(strengths) if part is not None
        ):
            raise InputError(
                f"{', '.join(names)} makes numbers that are not finite in the weights of {module}. Download it again, "
                "or use a smaller lora_scale."
            )
    for layer, strengths in chosen.values():
        layer.fuse(strengths)
    _changed(network)


@no_grad
def unfuse(network: nn.Layer) -> None:
    """Restores the weights from before :func:`fuse`, bit by bit."""
    for layer in adapted_layers(network).values():
        layer.unfuse()
    _changed(network)


def require(network: nn.Layer, names: Collection[str]) -> None:
    """Raises InputError if an adapter in ``names`` is not there."""
    unknown = [name for name in names if name not in adapter_names(network)]
    if unknown:
        known = ", ".join(adapter_names(network)) or "none"
        raise InputError(
            f"There is no adapter {', '.join(map(repr, unknown))}; this {type(network).__name__} has {known}."
        )


def _changed(network):
    """Updates fused projections, which are copies of weights, and drops traced graphs."""
    for layer in network.sublayers():
        if getattr(layer, "_fused", None) is not None:
            layer.fuse_projections()
    if hasattr(network, "_forget_graphs"):
        network._forget_graphs()
