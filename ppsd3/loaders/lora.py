"""LoRA and its relatives for the pipelines: loading, weighting, fusing, saving. Names are diffusers'."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional, overload

import paddle
from paddle import nn

from ..adapters import network as adapted
from ..adapters.files import LORA_WEIGHT_NAMES, read_adapters, read_lora_file, save_lora_file, write_adapters
from ..adapters.keys import bundled_word, component_of
from ..ops import scaled_adapters
from ..serialization.weight_files import find_weights, to_paddle
from ..utils.checking import checks_arguments, fit
from ..utils.errors import InputError
from ..utils.foreign import require_own
from ..utils.keywords import HUB_KEYWORDS, LOADING, SAVING, SWITCHES, takes_keywords_of
from ..utils.logging import get_logger
from ..utils.methods import hybridmethod
from ..utils.threads import Changing, changes_networks, works_with_networks
from ..utils.types import Names, PathLike, Tensors
from .host import PipelineHost
from .textual_inversion import KEYS as WORD_KEYS

_logger = get_logger(__name__)


class SD3LoraLoaderMixin(PipelineHost):
    """LoRA methods of pipelines with a ``transformer`` and text encoders.

    All loaded adapters are active together, each with its own weight (:meth:`set_adapters`).
    """

    _lora_loadable_modules: tuple[str, ...] = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")

    @checks_arguments
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: PathLike | dict[str, Any],
        adapter_name: str | None = None,
        strict: bool = True,
        hotswap: bool = False,
        **options: Any,
    ) -> None:
        """Loads a LoRA, DoRA, LoHa, LoKr, OFT or full changes of weights, in any of the dialects of
        :mod:`ppsd3.adapters.keys`.

        Linear layers, the convolution of the patches and norms can be changed. All parts that a file has for a layer
        add up; each tensor is used, or named in an error. Words that OneTrainer bundles are loaded as by
        ``load_textual_inversion``, and stay until ``unload_textual_inversion``.

        Args:
            pretrained_model_name_or_path_or_dict: a file, a directory, a hub id, a link to a file on the hub, or a dict
                of tensors (Paddle's, torch's or numpy's).
            adapter_name: default ``default_0``, ``default_1`` and so on; with ``hotswap`` the only one there is.
            strict: whether a key that matches no layer is an error, or else a warning.
            hotswap: exchange the adapter called ``adapter_name`` in place; its weights (:meth:`set_adapters`) stay.
            **options: ``weight_name``, ``subfolder``, ``cache_dir``, ``revision``, ``local_files_only``, ``token`` and
                ``force_download``: see :meth:`lora_state_dict`. ``network_alphas``: alphas beside those in a dict.

        Raises:
            CheckpointFormatError: no key matches a layer, or it is not a safetensors file.
            WeightMismatchError: some keys match no layer (with ``strict``), or tensors have other shapes.
            InputError: the name is taken, or with ``hotswap`` not there; a network is loaded on demand; a bundled word
                exists already, or is for an encoder that cannot learn it (with ``strict``).
        """
        alphas = fit("network_alphas", options.pop("network_alphas", None), Optional[dict[str, Any]])
        tensors, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **options
        )
        path = (
            "The dict"
            if isinstance(pretrained_model_name_or_path_or_dict, dict)
            else str(pretrained_model_name_or_path_or_dict)
        )
        self._refuse_on_demand()
        networks = self._lora_networks()
        tensors, words, beside = self._bundled_words(tensors, path, strict)
        for name in {component_of(key) for key in tensors}:
            require_own(f"A LoRA for the {name}", networks.get(name), name)
        with Changing(self, "load_lora_weights"), paddle.no_grad():
            adapter_name = adapted.name_to_load(list(networks.values()), adapter_name, hotswap)
            layers = {name: adapted.adaptable_layers(network) for name, network in networks.items()}
            found, lost = read_adapters(tensors, layers, path, metadata, alphas, strict)
            if words:
                self.load_textual_inversion(list(words.values()), list(words))
            lost = [*lost, *beside]
            if lost:
                _logger.warning("%s: %d keys have no layer here and were left out, e.g. %s.", path, len(lost), lost[0])
            for name, network in networks.items():
                if hotswap:
                    adapted.swap(network, adapter_name, found.get(name, {}))
                elif name in found:
                    adapted.attach(network, adapter_name, found[name])
                self._residency.take(network)

    def _bundled_words(self, tensors, path, strict):
        """(tensors of the adapter, word -> its embeddings by encoder, keys left out): OneTrainer writes words that were
        learnt with a LoRA into its file."""
        words: dict[str, dict[str, Any]] = {}
        left_out: list[str] = []
        for key, tensor in tensors.items():
            bundled = bundled_word(key)
            if bundled is None:
                continue
            word, part = bundled
            tower = next((name for name, known in WORD_KEYS.items() if known == part), None)
            if tower is not None and getattr(self, tower, None) is not None:
                words.setdefault(word, {})[part] = tensor
                continue
            left_out.append(key)
            if strict:
                raise InputError(
                    f"{path}: {key} "
                    + (
                        "is a vector for T5 or for an encoder's output, and ppsd3 has learnt words in CLIP alone."
                        if tower is None
                        else f"is for the {tower}, which is not loaded. Load the pipeline with it."
                    )
                    + f" Pass strict=False to leave it out; {word!r} is then read as ordinary text there."
                )
        return {key: tensor for key, tensor in tensors.items() if bundled_word(key) is None}, words, left_out

    def enable_lora_hotswap(self, **options: Any) -> None:
        """Changes nothing: any adapter can be exchanged (``hotswap=True``), whatever its rank and layers.

        ``options`` are those of diffusers, ``target_rank`` and ``check_compiled``.
        """

    @overload
    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: Any, *, return_lora_metadata: Literal[True], **hub_options: Any
    ) -> tuple[Tensors, dict[str, Any] | None]: ...

    @overload
    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: Any, weight_name: str | None = None, **hub_options: Any
    ) -> Tensors: ...

    @classmethod
    @takes_keywords_of(LOADING, also=HUB_KEYWORDS)
    @checks_arguments
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: PathLike | dict[str, Any],
        weight_name: str | None = None,
        subfolder: str | None = None,
        return_lora_metadata: bool = False,
        **hub_options: Any,
    ) -> Tensors | tuple[Tensors, dict[str, Any] | None]:
        """The tensors of an adapter's file, under the names in the file.

        Args:
            pretrained_model_name_or_path_or_dict: as in :meth:`load_lora_weights`.
            weight_name: name of the file in a directory or a repository. Default
                ``pytorch_lora_weights.safetensors``, else ``paddle_lora_weights.safetensors``, or in a directory its
                only safetensors file.
            subfolder: its folder there.
            return_lora_metadata: return a pair; the second is PEFT's configuration in the file, or None.
            **hub_options: ``cache_dir``, ``revision``, ``local_files_only``, ``token``, ``force_download``; and
                keywords of other libraries, see :mod:`ppsd3.utils.keywords`.
        """
        given = pretrained_model_name_or_path_or_dict
        if isinstance(given, dict):
            tensors, metadata = {name: to_paddle(name, value) for name, value in given.items()}, None
        else:
            path = find_weights(given, LORA_WEIGHT_NAMES, weight_name, subfolder, hub_options)
            tensors, metadata = read_lora_file(path)
        return (tensors, metadata) if return_lora_metadata else tensors

    @hybridmethod
    @takes_keywords_of(SAVING)
    @checks_arguments
    def save_lora_weights(
        cls,  # noqa: N805 (or the pipeline)
        save_directory: PathLike,
        adapter_name: str | None = None,
        weight_name: str | None = None,
        transformer_lora_layers: Mapping[str, Any] | None = None,
        text_encoder_lora_layers: Mapping[str, Any] | None = None,
        text_encoder_2_lora_layers: Mapping[str, Any] | None = None,
        transformer_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_2_lora_adapter_metadata: Mapping[str, Any] | None = None,
        is_main_process: bool = True,
        save_function: Any = None,
        safe_serialization: bool = True,
        layout: str = "diffusers",
    ) -> None:
        """Writes an adapter of this pipeline into one file, which diffusers reads too.

        (LoKr, OFT and full matrices are written under LyCORIS' names, for which diffusers has no layers. Words that
        came with an adapter are written by ``save_textual_inversion``.)

        Args:
            save_directory: made if missing.
            adapter_name: can be left out if there is only one.
            weight_name: default ``pytorch_lora_weights.safetensors``.
            transformer_lora_layers, text_encoder_lora_layers, text_encoder_2_lora_layers: in place of an adapter
                of this pipeline, key -> tensor without the component's name, e.g.
                ``transformer_blocks.0.attn.to_q.lora_A.weight``.
            *_lora_adapter_metadata: PEFT's configuration for each of these.
            is_main_process: False writes nothing, for the other processes of a distributed training.
            save_function: can only be None.
            safe_serialization: can only be True: pickles are not written.
            layout: "diffusers", or "ppdiffusers" for ``paddle_lora_weights.safetensors``, which its pipeline reads:
                LoRA of the transformer alone.

        Called on the class, as training scripts do, it needs layers.

        Raises:
            InputError: there is no such adapter, or it is not clear which; neither an adapter nor layers; another
                layout, or an adapter of a kind that it does not have.
        """
        if not safe_serialization or save_function is not None:
            raise InputError("Adapters are written as safetensors. Leave out save_function and safe_serialization.")
        if not is_main_process:
            return
        layers = {
            "transformer": (transformer_lora_layers, transformer_lora_adapter_metadata),
            "text_encoder": (text_encoder_lora_layers, text_encoder_lora_adapter_metadata),
            "text_encoder_2": (text_encoder_2_lora_layers, text_encoder_2_lora_adapter_metadata),
        }
        layers = {name: (tensors, config or {}) for name, (tensors, config) in layers.items() if tensors}
        if not layers and isinstance(cls, type):
            raise InputError(
                "save_lora_weights of the class has nothing to save. Pass transformer_lora_layers= (of "
                "get_peft_model_state_dict), or call it on the pipeline that has the adapter."
            )
        if not layers:
            pipe: Any = cls
            layers = pipe._layers_to_save(adapter_name)
        elif adapter_name is not None:
            raise InputError("Both adapter_name and layers are given. Give one of the two.")
        tensors = {
            f"{name}.{key}": to_paddle(key, value) for name, (some, _) in layers.items() for key, value in some.items()
        }
        config = {f"{name}.{key}": value for name, (_, config) in layers.items() for key, value in config.items()}
        save_lora_file(save_directory, weight_name, tensors, config, layout)

    @works_with_networks
    def _layers_to_save(self, adapter_name):
        names = self._adapter_names()
        if adapter_name is None and len(names) == 1:
            adapter_name = names[0]
        if adapter_name not in names:
            raise InputError(
                f"adapter_name is {adapter_name!r}; the adapters of this pipeline are {names or 'none'}. Name one."
            )
        found = {name: adapted.adapters_called(part, adapter_name) for name, part in self._lora_networks().items()}
        return {name: write_adapters(adapters) for name, adapters in found.items() if adapters}

    @checks_arguments
    @changes_networks
    def set_adapters(
        self,
        adapter_names: Names,
        adapter_weights: float | Mapping[str, float] | Sequence[float | Mapping[str, float] | None] | None = None,
    ) -> None:
        """Makes these adapters the active ones.

        Args:
            adapter_weights: the weight of each, 1 by default. A dict gives one for each component, e.g.
                ``{"transformer": 0.8, "text_encoder": 0.5}``.

        Raises:
            InputError: an unknown adapter or component, or not as many weights as names.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._require_adapters(names)
        weights = adapter_weights if isinstance(adapter_weights, (list, tuple)) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise InputError(f"There are {len(names)} adapter_names and {len(weights)} adapter_weights.")
        networks = self._lora_networks()
        weights = [{component: _weight_of(weight, component, networks) for component in networks} for weight in weights]
        for component, network in networks.items():
            adapted.set_strengths(network, {name: weight[component] for name, weight in zip(names, weights)})

    def get_active_adapters(self) -> list[str]:
        """Names of the active adapters."""
        return list(dict.fromkeys(n for part in self._lora_networks().values() for n in adapted.active_adapters(part)))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Component -> names of its adapters, for components that have any."""
        found = {name: adapted.adapter_names(network) for name, network in self._lora_networks().items()}
        return {name: adapters for name, adapters in found.items() if adapters}

    @checks_arguments
    @changes_networks
    def delete_adapters(self, adapter_names: Names) -> None:
        """Removes adapters.

        Raises:
            InputError: an unknown adapter, or one that is fused.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._require_adapters(names)
        for network in self._lora_networks().values():
            adapted.detach(network, names)

    @changes_networks
    def disable_lora(self) -> None:
        """Disables all adapters until :meth:`enable_lora`. Fused ones stay in the weights."""
        for network in self._lora_networks().values():
            adapted.set_enabled(network, False)

    @changes_networks
    def enable_lora(self) -> None:
        """Enables the adapters again."""
        for network in self._lora_networks().values():
            adapted.set_enabled(network, True)

    @checks_arguments
    @changes_networks
    def fuse_lora(
        self,
        components: Names | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Names | None = None,
    ) -> None:
        """Fuses adapters into the weights, so that they cost no time. :meth:`unfuse_lora` restores every bit.

        Args:
            components: default all that have adapters.
            lora_scale: factor of the adapters' weights.
            safe_fusing: check that the sums are finite.
            adapter_names: default the active ones.

        Raises:
            InputError: an unknown component or adapter, one that is fused already, or a sum that is not finite.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        if names is not None:
            self._require_adapters(names)
        for network in self._lora_components(components):
            adapted.fuse(network, names, lora_scale, safe_fusing)

    @checks_arguments
    @changes_networks
    def unfuse_lora(self, components: Names | None = None) -> None:
        """Restores the weights from before :meth:`fuse_lora`, bit by bit."""
        for network in self._lora_components(components):
            adapted.unfuse(network)

    @changes_networks
    @takes_keywords_of(SWITCHES)
    def unload_lora_weights(self) -> None:
        """Removes all adapters. Fused ones stay in the weights for good."""
        for network in self._lora_networks().values():
            adapted.unload(network)

    @property
    def fused_loras(self) -> set[str]:
        """Names of the fused adapters."""
        return {name for network in self._lora_networks().values() for name in adapted.fused_adapters(network)}

    @property
    def num_fused_loras(self) -> int:
        """Number of fused adapters."""
        return len(self.fused_loras)

    def lora_scaled(self, scale: float | None, argument: str = "scale") -> contextlib.AbstractContextManager[None]:
        """Multiplies the weights of all adapters by ``scale`` within the block; None changes nothing.

        Raises:
            InputError: ``scale`` is not a number, or not 1 though no adapter is loaded; the message names ``argument``.
        """
        return scaled_adapters(list(self._lora_networks().values()), scale, argument)

    def _refuse_on_demand(self):
        for name in self._lora_loadable_modules:
            part = getattr(self, name, None)
            if part is not None and not isinstance(part, nn.Layer):
                raise InputError(
                    f"The {name} is loaded on demand, so an adapter would be forgotten with it. Load the pipeline "
                    "without load_components='on_demand', load the LoRA, call fuse_lora(), unload_lora_weights() and "
                    "save_pretrained(): then load that on demand."
                )

    def _lora_networks(self) -> dict[str, nn.Layer]:
        """The networks in memory, by component."""
        parts = {name: getattr(self, name, None) for name in self._lora_loadable_modules}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Layer)}

    def _lora_components(self, components: Names | None) -> list[nn.Layer]:
        networks = self._lora_networks()
        names = list(networks) if components is None else [components] if isinstance(components, str) else components
        unknown = [name for name in names if name not in networks]
        if unknown:
            raise InputError(f"components is {list(names)}; adapters can be in {', '.join(networks)}.")
        return [networks[name] for name in names]

    def _adapter_names(self) -> list[str]:
        return list(dict.fromkeys(n for part in self._lora_networks().values() for n in adapted.adapter_names(part)))

    def _require_adapters(self, names: Sequence[str]) -> None:
        known = self._adapter_names()
        unknown = [name for name in names if name not in known]
        if unknown:
            have = ", ".join(known) or "none"
            raise InputError(f"There is no adapter {unknown[0]!r} (`adapter_names`); this pipeline has {have}.")


def _weight_of(weight, component, networks):
    if isinstance(weight, dict):
        unknown = [name for name in weight if name not in networks]
        if unknown:
            raise InputError(f"adapter_weights has {unknown[0]!r}; the components are {', '.join(networks)}.")
        weight = weight.get(component)
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise InputError(f"adapter_weights has {weight!r}; a weight is a number, or a dict of one for each component.")
    return float(weight)
