"""int8 quantization: which linear layers of a model become :class:`~ppsd3.ops.QuantizedLinear`, and how that is saved.

Each model names in ``_quantizable_modules`` the layers that read every token, which take most of a step's time. The
adaLN modulation (``_weight_only_modules``), a third of the weights and next to none of the work, has int8 weights but
exact activations: their rounding errors would be the same for all tokens instead of averaging out. Embedders and the
output projection are not quantized.

A saved model has ``"quantization_config": {"quant_method": "int8"}`` in its ``config.json``, and for each int8 layer
``weight`` (I8) and ``weight_scale`` in its weights. The latter tell which layers are int8.

An adapter (LoRA) can wrap a layer of any type: :class:`QuantizedLinear` passes gradients to its input and has none of
its own. A wrapped layer gets its tokens as a plain tensor (:func:`ppsd3.ops.shared_input`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle import nn

from .ops import Linear, QuantizedLinear, WeightOnlyLinear, own_sublayers
from .serialization.source import TensorSource
from .serialization.tensors import is_floating
from .utils.checking import shown
from .utils.errors import CheckpointFormatError, ConfigError, InputError
from .utils.recognition import explain_quantization
from .utils.types import Names

KINDS = ("int8",)
CONFIG_KEY = "quantization_config"


class QuantizableModel(nn.Layer):
    """What quantization reads of a model.

    Attributes:
        _quantizable_modules: names of the modules whose linear layers become int8.
        _weight_only_modules: more of them, whose weights become int8 and whose activations are not rounded.
    """

    _quantizable_modules: tuple[str, ...] = ()
    _weight_only_modules: tuple[str, ...] = ()


def quantize_(model: QuantizableModel, kind: str, skip: Names = ()) -> None:
    """Replaces linear layers of ``model`` by int8 ones in place, one at a time.

    Args:
        kind: "int8".
        skip: modules that are not quantized, by consecutive parts of their names: ``"ff_context"`` or
            ``"transformer_blocks.0"``.

    Raises:
        InputError: unknown ``kind``, a model that is quantized already or has fused projections, no layer to quantize,
            a name in ``skip`` that matches no layer, or weights that are not finite floating-point numbers.
    """
    layers = choose_layers(model, kind, skip)
    for name, layer in layers.items():
        if not is_floating(layer.weight.dtype) or not bool(layer.weight.astype("float32").isfinite().all()):
            raise InputError(
                f"{type(model).__name__} has weights in {name} that are no finite numbers; load or train it again."
            )
    for name, layer in layers.items():
        replace_layer(model, name, _class_of(model, name).from_linear(layer))


def choose_layers(model: QuantizableModel, kind: str, skip: Names = ()) -> dict[str, Linear]:
    """The linear layers of ``model`` that :func:`quantize_` replaces, by name; raises the same errors."""
    owner = type(model).__name__
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} is not known. Choose {' or '.join(map(repr, KINDS))}.")
    if is_quantized(model):
        raise InputError(f"This {owner} is in int8 already. Load it again if you want to quantize it differently.")
    if any(getattr(layer, "_fused", None) is not None for layer in model.sublayers()):
        raise InputError(
            f"This {owner} has fused projections, which are copies of its weights. Call unfuse_qkv_projections() "
            "before quantize(), and fuse_qkv_projections() after it if you want them fused."
        )
    layers = {
        name: layer
        for name, layer in own_sublayers(model)
        if type(layer) is Linear and _is_in(name, (*model._quantizable_modules, *model._weight_only_modules))
    }
    if not layers:
        raise InputError(f"{owner} has no layers that gain from int8. Quantize the transformer or T5.")
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    for part in skip:
        if not any(_has_part(name, part) for name in layers):
            raise InputError(
                f"skip has {part!r}, which is in no name of a layer to quantize, e.g. {next(iter(layers))!r}."
            )
    return {name: layer for name, layer in layers.items() if not any(_has_part(name, part) for part in skip)}


def is_quantized(model: nn.Layer) -> bool:
    """Whether ``model`` has int8 layers."""
    return any(isinstance(layer, QuantizedLinear) for layer in model.sublayers())


def config_entries(model: nn.Layer) -> dict[str, Any]:
    """The entries of a quantized model's ``config.json``; empty for another model."""
    return {CONFIG_KEY: {"quant_method": "int8"}} if is_quantized(model) else {}


def prepare_for_loading(model: QuantizableModel, config: Any, checkpoint: TensorSource) -> None:
    """Replaces the layers of a new ``model`` that are int8 in ``checkpoint`` by int8 layers without weights.

    Args:
        config: the ``quantization_config`` of the checkpoint's ``config.json``, None if it has none.

    Raises:
        ConfigError: a quantization method that ppsd3 does not read.
        CheckpointFormatError: the tensors contradict the configuration.
    """
    if config is None:
        return
    method = config.get("quant_method") if isinstance(config, dict) else config
    if method not in KINDS:
        raise ConfigError(
            explain_quantization(checkpoint.path, config)
            or f"{checkpoint.path} is quantized by {shown(method)}; ppsd3 reads {', '.join(KINDS)}. Load a checkpoint "
            "that is not quantized, then call quantize('int8')."
        )
    suffix = ".weight_scale"
    layers = dict(model.named_sublayers())
    names = [key[: -len(suffix)] for key in checkpoint.keys() if key.endswith(suffix)]
    wrong = [name for name in names if not _is_int8_linear(layers.get(name), name + ".weight", checkpoint)]
    if wrong or not names:
        what = f"{wrong[0]} is no int8 linear layer of {type(model).__name__}" if wrong else "none of its layers is"
        raise CheckpointFormatError(
            f"{checkpoint.path} should hold an int8 model, but {what}. Quantize the original again and save it."
        )
    for name in names:
        replace_layer(model, name, _class_of(model, name).unfilled(layers[name]))


def _is_int8_linear(layer: nn.Layer | None, weight: str, checkpoint: TensorSource) -> bool:
    return type(layer) is Linear and weight in checkpoint.keys() and checkpoint.info(weight).dtype == "int8"


def takes_int8(kind: type[QuantizableModel], name: str, shape: Sequence[int]) -> bool:
    """Whether :func:`quantize_` would hold the tensor of this name and shape in int8, in a ``kind``."""
    layer, _, tensor = name.rpartition(".")
    modules = (*kind._quantizable_modules, *kind._weight_only_modules)
    return tensor == "weight" and len(shape) == 2 and _is_in(layer, modules)


def _class_of(model: QuantizableModel, name: str) -> type[QuantizedLinear]:
    return WeightOnlyLinear if _is_in(name, model._weight_only_modules) else QuantizedLinear


def _is_in(name, modules):
    return not set(modules).isdisjoint(name.split("."))


def _has_part(name, part):
    return f".{part}." in f".{name}."


def replace_layer(model: nn.Layer, name: str, layer: nn.Layer) -> None:
    """Replaces the sublayer of ``model`` called ``name`` by ``layer``."""
    *parents, last = name.split(".")
    for parent in parents:
        model = getattr(model, parent)
    layer.training = getattr(model, last).training
    setattr(model, last, layer)
