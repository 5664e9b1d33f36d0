"""LoRA methods of networks, and PEFT's two functions, under the names of diffusers and PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import paddle
from paddle import nn

from ..serialization.weight_files import find_weights, to_paddle
from ..utils.checking import checks_arguments
from ..utils.errors import InputError, WeightMismatchError
from ..utils.keywords import LOADING, takes_keywords_of
from ..utils.paddle_internals import no_grad
from ..utils.threads import Changing, changes_networks
from ..utils.types import Names, PathLike, Tensors
from . import network as adapted
from .files import LORA_WEIGHT_NAMES, read_adapters, read_lora_file, save_lora_file, write_adapters
from .network import AdapterConfig


class PeftAdapterMixin(nn.Layer):
    """Mixed into the networks: what a pipeline's LoRA methods do to all of its networks, done to one.

    All loaded adapters are active together, each with its own weight.
    """

    _components: tuple[str, ...] = ()

    @changes_networks
    def add_adapter(self, adapter_config: AdapterConfig, adapter_name: str = "default") -> None:
        """Adds a new LoRA (``ppsd3.LoraConfig``) or LoKr (``ppsd3.LoKrConfig``) to train; its weights become the only
        trainable ones.

        Raises:
            InputError: the name is taken or impossible, no layer matches, or it is no configuration of either.
        """
        if not isinstance(adapter_config, AdapterConfig):
            raise InputError(
                f"adapter_config is a {type(adapter_config).__name__}; pass a ppsd3.LoraConfig or ppsd3.LoKrConfig."
            )
        adapted.add_adapter(self, adapter_config, adapter_name)

    @checks_arguments
    @changes_networks
    def set_adapter(self, adapter_name: Names) -> None:
        """Makes these adapters the active ones, with the weights that they have.

        Raises:
            InputError: an unknown adapter.
        """
        names = _names(adapter_name)
        adapted.set_strengths(self, {name: adapted.strength_of(self, name) for name in names})

    @checks_arguments
    @changes_networks
    def set_adapters(self, adapter_names: Names, weights: float | Sequence[float | None] | None = None) -> None:
        """Makes these adapters the active ones, with these weights, 1 by default.

        Raises:
            InputError: an unknown adapter, or not as many weights as names.
        """
        names = _names(adapter_names)
        given: list[Any] = list(weights) if isinstance(weights, (list, tuple)) else [weights] * len(names)
        if len(given) != len(names):
            raise InputError(f"There are {len(names)} adapter_names and {len(given)} weights.")
        adapted.require(self, names)
        adapted.set_strengths(self, {n: 1.0 if weight is None else weight for n, weight in zip(names, given)})

    def active_adapters(self) -> list[str]:
        """Names of the active adapters; none while adapters are disabled."""
        return adapted.active_adapters(self)

    @changes_networks
    def disable_adapters(self) -> None:
        """Disables all adapters until :meth:`enable_adapters`. Fused ones stay in the weights."""
        adapted.set_enabled(self, False)

    @changes_networks
    def enable_adapters(self) -> None:
        """Enables the adapters again."""
        adapted.set_enabled(self, True)

    disable_lora = disable_adapters
    enable_lora = enable_adapters

    @checks_arguments
    @changes_networks
    def delete_adapters(self, adapter_names: Names) -> None:
        """Removes adapters.

        Raises:
            InputError: an unknown adapter, or one that is fused.
        """
        names = _names(adapter_names)
        adapted.require(self, names)
        adapted.detach(self, names)

    @checks_arguments
    @changes_networks
    def fuse_lora(self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: Names | None = None) -> None:
        """Fuses adapters into the weights; arguments and errors as in the pipeline's method."""
        names = None if adapter_names is None else _names(adapter_names)
        adapted.require(self, names or ())
        adapted.fuse(self, names, lora_scale, safe_fusing)

    @changes_networks
    def unfuse_lora(self) -> None:
        """Restores the weights from before :meth:`fuse_lora`, bit by bit."""
        adapted.unfuse(self)

    @changes_networks
    def unload_lora(self) -> None:
        """Removes all adapters. Fused ones stay in the weights for good."""
        adapted.unload(self)

    def enable_lora_hotswap(self, **options: Any) -> None:
        """Changes nothing: any adapter can be exchanged (``hotswap=True``), whatever its rank and layers.

        ``options`` are those of diffusers, ``target_rank`` and ``check_compiled``.
        """

    @takes_keywords_of(LOADING)
    @checks_arguments
    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: PathLike | Mapping[str, Any],
        prefix: str | None = "transformer",
        hotswap: bool = False,
        *,
        adapter_name: str | None = None,
        weight_name: str | None = None,
        subfolder: str | None = None,
        network_alphas: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        cache_dir: PathLike | None = None,
        revision: str | None = None,
        local_files_only: bool | None = None,
        token: str | None = None,
        force_download: bool = False,
    ) -> None:
        """Loads an adapter's tensors for this network alone, in any dialect of :mod:`ppsd3.adapters.keys`.

        Args:
            pretrained_model_name_or_path_or_dict: a file, a directory, a hub id, a link, or a dict of tensors.
            prefix: only keys that begin so are for this network; where no key does, all are.
            hotswap: exchange the adapter called ``adapter_name`` in place; its weight stays.
            adapter_name: default ``default_0``, ``default_1`` and so on; with ``hotswap`` the only one there is.
            network_alphas: alphas beside those among the tensors.
            metadata: PEFT's configuration for a dict of tensors, names prefixed as the keys are.
            weight_name, subfolder, cache_dir, revision, local_files_only, token, force_download: as in the pipeline's
                ``load_lora_weights``.

        Raises:
            CheckpointFormatError, WeightMismatchError, InputError: as in the pipeline's ``load_lora_weights``.
        """
        given, path = pretrained_model_name_or_path_or_dict, "The dict"
        if isinstance(given, Mapping):
            tensors = {name: to_paddle(name, value) for name, value in given.items()}
        else:
            hub: dict[str, Any] = {"cache_dir": cache_dir, "revision": revision, "local_files_only": local_files_only}
            hub.update(token=token, force_download=force_download)
            path = str(given)
            tensors, metadata = read_lora_file(find_weights(given, LORA_WEIGHT_NAMES, weight_name, subfolder, hub))
        component = (self._components or ("transformer",))[0]
        with Changing(self, "load_lora_adapter"), paddle.no_grad():
            name = adapted.name_to_load([self], adapter_name, hotswap)
            found, _ = read_adapters(
                _of_component(tensors, prefix, component),
                {component: adapted.adaptable_layers(self)},
                path,
                _of_component(metadata or {}, prefix, component),
                network_alphas,
            )
            (adapted.swap if hotswap else adapted.attach)(self, name, found.get(component, {}))

    @checks_arguments
    def save_lora_adapter(
        self,
        save_directory: PathLike,
        adapter_name: str = "default",
        upcast_before_saving: bool = False,
        safe_serialization: bool = True,
        weight_name: str | None = None,
    ) -> None:
        """Writes an adapter of this network into one file, its keys without the network's name.

        Args:
            save_directory: made if missing.
            upcast_before_saving: write float32.
            safe_serialization: can only be True: pickles are not written.
            weight_name: default ``pytorch_lora_weights.safetensors``.

        Raises:
            InputError: there is no such adapter.
        """
        if not safe_serialization:
            raise InputError("safe_serialization=False would write a pickle; ppsd3 writes safetensors only.")
        adapted.require(self, [adapter_name])
        tensors, config = write_adapters(adapted.adapters_called(self, adapter_name))
        if upcast_before_saving:
            tensors = {name: tensor.astype("float32") for name, tensor in tensors.items()}
        save_lora_file(save_directory, weight_name, tensors, config)


@checks_arguments
def get_peft_model_state_dict(model: nn.Layer, adapter_name: str = "default") -> Tensors:
    """The tensors of an adapter of ``model``, by PEFT's names, e.g. ``transformer_blocks.0.attn.to_q.lora_A.weight``.

    Raises:
        InputError: there is no such adapter.
    """
    adapted.require(model, [adapter_name])
    return write_adapters(adapted.adapters_called(model, adapter_name))[0]


@checks_arguments
@changes_networks
@no_grad
def set_peft_model_state_dict(
    model: nn.Layer, peft_model_state_dict: Mapping[str, Any], adapter_name: str = "default"
) -> None:
    """Fills an adapter that ``model`` has with the tensors of :func:`get_peft_model_state_dict`.

    Raises:
        InputError: there is no such adapter, or it is not a LoRA.
        WeightMismatchError: other names or shapes than the adapter's.
    """
    own = get_peft_model_state_dict(model, adapter_name)
    adapters = adapted.adapters_called(model, adapter_name).values()
    held = {id(tensor) for adapter in adapters for tensor in adapter.parameters()}
    made = [name for name, tensor in own.items() if id(tensor) not in held]
    if made:
        raise InputError(
            f"The adapter {adapter_name!r} has {made[0]}, which is no part of a LoRA that can be filled. Load it "
            "with load_lora_adapter(..., hotswap=True)."
        )
    differing = sorted(set(own) ^ set(peft_model_state_dict))
    if differing:
        raise WeightMismatchError(
            f"The adapter {adapter_name!r} and peft_model_state_dict differ in {len(differing)} names, e.g. "
            f"{differing[0]}. Add the adapter with the LoraConfig that the tensors were trained with."
        )
    for name, parameter in own.items():
        value = to_paddle(name, peft_model_state_dict[name])
        if value.shape != parameter.shape:
            raise WeightMismatchError(
                f"{name} is {list(value.shape)} for an adapter of {list(parameter.shape)}. Add the adapter with the "
                "LoraConfig that the tensors were trained with."
            )
        parameter.set_value(value.astype(parameter.dtype))


def _names(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _of_component(entries: Mapping[str, Any], prefix: str | None, component: str) -> dict[str, Any]:
    """Entries of a file that are this network's, under the component's name; those of other dialects as they are."""
    start = f"{prefix}."
    own = {f"{component}.{key[len(start) :]}": value for key, value in entries.items() if key.startswith(start)}
    if own and prefix:
        return own
    prefixes = (f"{component}.", f"{component}_2.", "lora_te")
    plain = component != "transformer" and not any(key.startswith(prefixes) for key in entries)
    return {f"{component}.{key}" if plain else key: value for key, value in entries.items()}
