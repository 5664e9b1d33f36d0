"""IP-adapters for the pipelines: loading with their image encoder, scaling, unloading. Names are diffusers'."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..models import ip_adapter as adapters
from ..serialization.readers import SafetensorsFile
from ..serialization.source import TensorInfo
from ..serialization.tensors import cast
from ..serialization.weight_files import find_weights, to_paddle
from ..transformers import SiglipImageProcessor, SiglipVisionModel
from ..utils.checking import checks_arguments
from ..utils.errors import CheckpointNotFoundError, InputError
from ..utils.hub import resolve_checkpoint
from ..utils.keywords import HUB_KEYWORDS, LOADING, takes_keywords_of
from ..utils.threads import Changing, changes_networks
from ..utils.types import Dtype, PathLike
from .host import PipelineHost

IP_ADAPTER_WEIGHT_NAME = "ip-adapter.safetensors"
PUBLISHED_IMAGE_ENCODER = "google/siglip-so400m-patch14-384"  # what InstantX's adapter was trained with


class SD3IPAdapterMixin(PipelineHost):
    """IP-adapter methods of pipelines with ``transformer``, ``image_encoder`` and ``feature_extractor``."""

    @takes_keywords_of(LOADING, also=HUB_KEYWORDS)
    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: PathLike | dict[str, Any],
        weight_name: str = IP_ADAPTER_WEIGHT_NAME,
        subfolder: str | None = None,
        image_encoder_folder: str | None = "image_encoder",
        **hub_options: Any,
    ) -> None:
        """Loads an IP-adapter, with scale 0.5, in place of an earlier one, and its image encoder and image processor
        unless the pipeline has them.

        If the transformer is loaded on demand, the adapter stays in memory.

        Args:
            pretrained_model_name_or_path_or_dict: a directory, a hub id, a file, or a dict of tensors:
                ``{"image_proj": {...}, "ip_adapter": {...}}``, or flat with these names as prefixes.
            weight_name: name of the file in a directory or repository.
            subfolder: its folder there.
            image_encoder_folder: folder of the image encoder: in ``subfolder``, or, with a ``/`` in it, in the
                directory or repository; for a file, beside it. None loads none: then calls take
                ``ip_adapter_image_embeds`` only, until :meth:`load_image_encoder` is called.
            **hub_options: ``cache_dir``, ``revision``, ``local_files_only``, ``token``, ``force_download``; and
                keywords of other libraries, see :mod:`ppsd3.utils.keywords`.

        Raises:
            CheckpointNotFoundError: no such file, or no image encoder.
            CheckpointFormatError: a pickle (``ip-adapter.bin``), or not an IP-adapter of SD3.
            WeightMismatchError: one for another transformer.
            InputError: the image encoder cannot be looked for.
        """
        if self.transformer is None:
            raise InputError("The pipeline has no `transformer` to load an IP-adapter into. Load it too.")
        given = pretrained_model_name_or_path_or_dict
        if isinstance(given, dict):
            source = _TensorDict(given)
        else:
            source = SafetensorsFile(find_weights(given, IP_ADAPTER_WEIGHT_NAME, weight_name, subfolder, hub_options))
        transformer = self.transformer
        adapter = adapters.read_ip_adapter(source, transformer.config, transformer.dtype, transformer.storage_dtype)
        made = {}
        if image_encoder_folder is not None:
            made = self._find_image_encoder(given, subfolder, image_encoder_folder, hub_options)
        with Changing(self, "load_ip_adapter"):
            self._set_ip_adapter(adapter)
            self._set(made)
            self._residency.take(self.transformer)

    def _set_ip_adapter(self, adapter: adapters.IPAdapter | None) -> None:
        assert self.transformer is not None
        if not isinstance(self.transformer, nn.Layer):  # on demand
            self.transformer.keep_attached(adapter, adapters.attached)
        elif adapter is None:
            adapters.detach(self.transformer)
        else:
            adapters.attach(self.transformer, adapter)

    def _find_image_encoder(self, given, subfolder, folder, hub_options):
        """The components that the pipeline lacks for image prompts of the adapter ``given``, by name."""
        if self.image_encoder is not None and self.feature_extractor is not None:
            return {}
        remedy = (
            f"Call load_image_encoder() before (the published adapter has {PUBLISHED_IMAGE_ENCODER}), or pass "
            "image_encoder_folder=None and give ip_adapter_image_embeds to calls."
        )
        if isinstance(given, dict):
            raise InputError(f"A dict of tensors brings no image encoder. {remedy}")
        path = os.path.expanduser(os.fspath(given))
        if os.path.isfile(path):
            path = os.path.dirname(path)
        elif "/" not in folder and subfolder:
            folder = f"{subfolder}/{folder}"
        if os.path.isdir(path) and not os.path.isdir(os.path.join(path, folder)):
            raise CheckpointNotFoundError(f"{os.path.join(path, folder)} does not exist. {remedy}")
        try:
            return self._read_image_encoder(path, folder, hub_options)
        except CheckpointNotFoundError as error:
            raise CheckpointNotFoundError(f"{error} {remedy}") from error

    @takes_keywords_of(LOADING, also=HUB_KEYWORDS)
    def load_image_encoder(
        self, pretrained_model_name_or_path: PathLike, subfolder: str | None = None, **hub_options: Any
    ) -> None:
        """Loads ``image_encoder`` and ``feature_extractor``, unless the pipeline has them, in the transformer's dtype.

        Args:
            pretrained_model_name_or_path: a directory or hub id with both, e.g.
                ``"google/siglip-so400m-patch14-384"``.
            subfolder: their folder there.
            **hub_options: ``cache_dir``, ``revision``, ``local_files_only``, ``token``, ``force_download``; and
                keywords of other libraries, see :mod:`ppsd3.utils.keywords`.

        Raises:
            CheckpointNotFoundError, CheckpointFormatError, ConfigError, WeightMismatchError: as ``from_pretrained``.
        """
        made = self._read_image_encoder(pretrained_model_name_or_path, subfolder or "", hub_options)
        with Changing(self, "load_image_encoder"):
            self._set(made)

    def _read_image_encoder(self, path: PathLike, subfolder: str, hub_options: dict[str, Any]) -> dict[str, Any]:
        directory = resolve_checkpoint(path, subfolder=subfolder, **hub_options)
        made = {}
        if self.feature_extractor is None:
            made["feature_extractor"] = SiglipImageProcessor.from_pretrained(directory, subfolder=subfolder)
        if self.image_encoder is None:
            made["image_encoder"] = self._read_more(SiglipVisionModel, directory, subfolder)
        return made

    def _set(self, components):
        for name, part in components.items():
            setattr(self, name, part)
            self._residency.take(part)

    @checks_arguments
    def set_ip_adapter_scale(self, scale: float | list[float] | tuple[float, ...]) -> None:
        """Sets the weight of the image prompt in later calls; in a callback, in the call that it belongs to.

        Args:
            scale: 0 leaves the image prompt out, 1 is its full effect; or one number for each attention of the
                transformer, in the order of ``transformer.attn_processors``.

        Raises:
            InputError: not a number or not one for each attention, or no adapter is loaded.
        """
        if self.ip_adapter is None:
            raise InputError("There is no IP-adapter whose scale could be set. Load one with load_ip_adapter().")
        attentions = self.ip_adapter.ip_adapter
        scales = list(scale) if isinstance(scale, (list, tuple)) else [scale] * len(attentions)
        if len(scales) != len(attentions):
            raise InputError(f"scale has {len(scales)} numbers, and the transformer has {len(attentions)} attentions.")
        for value in scales:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"scale has {value!r}; it is a number, e.g. 0.5, or one for each attention.")
        self.ip_adapter.scales = scales

    @changes_networks
    def unload_ip_adapter(self) -> None:
        """Removes the adapter, image encoder and image processor, and restores the attention processors."""
        if self.ip_adapter is not None:
            self._set_ip_adapter(None)
        self._set({"image_encoder": None, "feature_extractor": None})

    @property
    def ip_adapter(self) -> adapters.IPAdapter | None:
        """The transformer's IP-adapter, or None."""
        return getattr(self.transformer, "ip_adapter", None)

    @property
    def is_ip_adapter_active(self) -> bool:
        """Whether an adapter is loaded and one of its scales is not 0."""
        return self.ip_adapter is not None and any(scale != 0 for scale in self.ip_adapter.scales)


class _TensorDict:
    """A dict of tensors as a :class:`~ppsd3.serialization.source.TensorSource`; each is converted when it is read."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.path: str = "The dict"
        self.metadata: dict[str, str] = {}
        flat: dict[str, Any] = {}
        for key, value in tensors.items():
            parts = {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
            flat.update(parts)
        self._tensors = flat

    def keys(self) -> list[str]:
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        value = self._tensors[name]
        if not hasattr(value, "shape"):
            value = to_paddle(name, value)
        return TensorInfo("", tuple(value.shape))

    def load(
        self, name: str, dtype: Dtype | None = None, part: tuple[int, int] = (0, 1), scale: float = 1.0
    ) -> np.ndarray:
        tensor = to_paddle(name, self._tensors[name])
        return cast(tensor, tensor.dtype if dtype is None else dtype).numpy().copy()

    def read(self, name: str, dtype: Dtype | None = None) -> paddle.Tensor:
        tensor = to_paddle(name, self._tensors[name])
        return tensor if dtype is None else cast(tensor, dtype)

    def forget(self, name: str) -> None:
        pass
