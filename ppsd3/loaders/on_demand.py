"""Networks that are loaded on demand: read from their files for each use, and released afterwards."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Callable

import numpy as np
import paddle
from paddle import nn

from ..configuration_utils import FrozenConfig, naming
from ..modeling_utils import ModelMixin, to_be_filled
from ..quantization import CONFIG_KEY
from ..serialization.tensors import floating_dtype
from ..utils.device import release_freed_memory
from ..utils.errors import InputError
from ..utils.paddle_internals import Place, current_place, empty_cache, free_memory
from ..utils.threads import Shared, changes_networks
from ..utils.types import Dtype, PathLike
from .loan import bring_home, on_loan, tensors_of


class OnDemandNetwork(Shared):
    """The placeholder in a pipeline for a network that is read from its files for each use, and released afterwards.

    Args:
        class_, name: the network's class, and the component's name in the pipeline.
        read: reads the network.
        config, dtype: of the network, known without reading it.
        path: of the file, or of the directory with its files.
        options: how it is read, for :meth:`fingerprint`.
    """

    config: FrozenConfig
    dtype: paddle.dtype
    ip_adapter: nn.Layer | None
    network_class: type[ModelMixin]
    name: str

    def __init__(
        self,
        class_: type[ModelMixin],
        name: str,
        read: Callable[[], ModelMixin],
        config: Mapping[str, Any],
        dtype: paddle.dtype,
        path: str,
        options: Mapping[str, Any],
    ) -> None:
        self.network_class, self.name, self.dtype = class_, name, dtype
        self._read, self._path, self._options = read, path, options
        with to_be_filled(), naming(path):  # a skeleton without weights, for the defaults that its file leaves out
            config = {key: value for key, value in config.items() if key != CONFIG_KEY}  # of an int8 checkpoint
            self.config = class_.from_config(config).config
        self._network: ModelMixin | None = None
        self._users, self._lock = 0, threading.Lock()  # held while it is read or released
        self._attachment = contextlib.ExitStack()  # of the adapter, while the network is there
        self._calls: dict[str, dict[str, Any]] = {}  # method -> its keyword arguments, called after each loading
        self.ip_adapter = None
        self._attached: Callable[..., AbstractContextManager[Any]] = contextlib.nullcontext

    @classmethod
    def of_directory(
        cls, class_: type[ModelMixin], directory: str, name: str, options: Mapping[str, Any]
    ) -> OnDemandNetwork:
        """The component ``name`` of the checkpoint in ``directory``.

        ``options`` are for ``class_.from_pretrained``: ``paddle_dtype``, ``storage_dtype``, ``variant``.
        """
        read = functools.partial(_from_pretrained, class_, directory, name, options)
        folder = os.path.join(directory, name)
        dtype = floating_dtype(options.get("paddle_dtype"))
        return cls(class_, name, read, class_.load_config(folder), dtype, folder, options)

    @property
    def storage_dtype(self) -> Dtype | None:
        """See :attr:`ppsd3.modeling_utils.ModelMixin.storage_dtype`."""
        return self._options.get("storage_dtype")

    @changes_networks
    def keep_attached(self, adapter: nn.Layer | None, attached: Callable[..., AbstractContextManager[Any]]) -> None:
        """Attaches an adapter that stays in the computer's memory, whenever the network is read.

        Args:
            adapter: becomes ``ip_adapter``; None removes it.
            attached: ``(network, adapter)`` -> context manager within which the network has the adapter.
        """
        if adapter is not None:
            bring_home(adapter)
        self.ip_adapter, self._attached = adapter, attached

    @contextlib.contextmanager
    def resident(self) -> Iterator[ModelMixin]:
        """The network: read now unless another block has read it, released at the end of the last block.

        Blocks may be inside one another, and in several threads.
        """
        with self._lock:
            self._users += 1
        try:
            with self._lock:
                if self._network is None:
                    self._network = self._read_whole()
            yield self._network
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._release()

    def _read_whole(self):
        """The network with all that was done to it, and with its adapter."""
        network = self._read()
        for method, options in self._calls.items():
            getattr(network, method)(**options)
        if self.ip_adapter is not None:
            if not current_place().is_cpu_place():
                tensors = tensors_of(self.ip_adapter, include_sublayers=True)
                self._attachment.enter_context(on_loan(tensors, current_place()))
            self._attachment.enter_context(self._attached(network, self.ip_adapter))
        return network

    def _release(self):
        self._attachment.close()  # the adapter keeps its memory
        network, self._network = self._network, None
        if network is not None:
            for tensor in tensors_of(network, include_sublayers=True):
                free_memory(tensor)  # whoever still refers to the network: its memory is not kept
        release_freed_memory()
        empty_cache(current_place())

    @property
    def device(self) -> Place:
        """The place of the network."""
        return current_place() if self._network is None else self._network.device

    @changes_networks
    def call_after_loading(self, method: str, **options: Any) -> None:
        """Calls ``network.method(**options)`` each time the network has been read."""
        self._calls.pop(method, None)
        self._calls[method] = options

    def fingerprint(self) -> bytes:
        """Bytes that change with the network's files and with how they are loaded."""
        paths = [entry.path for entry in os.scandir(self._path)] if os.path.isdir(self._path) else [self._path]
        files = [(os.path.basename(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
        options = sorted(self._options.items(), key=str)
        calls = [(method, sorted((k, _as_text(v)) for k, v in some.items())) for method, some in self._calls.items()]
        return repr((self.network_class.__name__, self.name, sorted(files), options, calls)).encode()

    def save_pretrained(self, save_directory: PathLike, **options: Any) -> None:
        """See :meth:`ppsd3.modeling_utils.ModelMixin.save_pretrained`."""
        with self.resident() as network:
            network.save_pretrained(save_directory, **options)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise AttributeError(
            f"The {self.name} is loaded on demand and has no {attribute!r} between calls. Use "
            f"`with pipe.using({self.name!r}) as network:`, or load the pipeline without load_components='on_demand'."
        )

    def __repr__(self) -> str:
        return f"OnDemandNetwork({self.network_class.__name__}, {self.name!r}, {self._path!r})"


def check_load_components(value: str) -> None:
    """Raises InputError unless ``value`` can be ``load_components``."""
    if value not in ("all", "on_demand"):
        raise InputError(f"load_components is {value!r}; it can be 'all' or 'on_demand'.")


def _from_pretrained(class_: type[ModelMixin], directory: str, name: str, options: Mapping[str, Any]) -> ModelMixin:
    return class_.from_pretrained(directory, subfolder=name, **options)


def _as_text(value):
    return value.tobytes().hex() if isinstance(value, np.ndarray) else repr(value)
