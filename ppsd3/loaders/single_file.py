"""Loads pipelines from the single files that Stability AI and ComfyUI publish."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .. import schedulers
from ..modeling_utils import ModelMixin
from ..models import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel
from ..schedulers import FlowMatchEulerDiscreteScheduler
from ..serialization import Checkpoint, SingleFile
from ..serialization.sd3_configs import SCHEDULER, infer_config
from ..serialization.source import TensorSource
from ..serialization.tensors import floating_dtype
from ..transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer
from ..utils.errors import CheckpointFormatError, InputError
from ..utils.hub import resolve_checkpoint, resolve_file
from ..utils.keywords import LOADING, takes_keywords_of
from ..utils.recognition import explain, explaining
from ..utils.types import Dtype, PathLike
from .host import PipelineHost, components_taken
from .on_demand import OnDemandNetwork, check_load_components

if TYPE_CHECKING:
    from typing_extensions import Self

NETWORKS = {
    "transformer": SD3Transformer2DModel,
    "controlnet": SD3ControlNetModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
}
# Tokenizer -> (class, the encoder that reads its ids).
TOKENIZERS = {
    "tokenizer": (CLIPTokenizer, "text_encoder"),
    "tokenizer_2": (CLIPTokenizer, "text_encoder_2"),
    "tokenizer_3": (T5Tokenizer, "text_encoder_3"),
}
# Padding of the published CLIP tokenizers: all that they differ in.
CLIP_PADDING = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
CLIP_TABLE, CLIP_VOCABULARY = "text_model.embeddings.token_embedding.weight", 49408


class FromSingleFileMixin(PipelineHost):
    """``from_single_file`` of pipelines whose ``__init__`` arguments are their components."""

    @classmethod
    @takes_keywords_of(LOADING, also=components_taken)
    def from_single_file(
        cls,
        pretrained_model_link_or_path: PathLike,
        config: PathLike | None = None,
        paddle_dtype: Dtype | dict[str, Dtype] | None = None,
        storage_dtype: Dtype | dict[str, Dtype] | None = None,
        load_components: str = "all",
        cache_dir: PathLike | None = None,
        revision: str | None = None,
        local_files_only: bool | None = None,
        token: str | None = None,
        force_download: bool = False,
        **components: Any,
    ) -> Self:
        """Loads a pipeline from one safetensors file; parts that it lacks come from other files.

        Nothing is downloaded unless a link or a hub id is passed. Configurations come from ``config``, else from the
        file (if ppsd3 wrote it), else from the shapes of its tensors. CLIP's tokenizers are built in; T5's comes from
        ``config`` or ``tokenizer_3``.

        Args:
            pretrained_model_link_or_path: the file with the transformer, e.g. ``sd3.5_medium.safetensors``, or a link
                to one on the hub.
            config: a directory or hub id in diffusers format, for tokenizers, scheduler and configurations. No weights
                are downloaded from a hub id.
            paddle_dtype: of the networks; a dict gives one for each component, with ``"default"`` for the rest.
                Default: ``paddle.get_default_dtype()``.
            storage_dtype, load_components: as in ``from_pretrained``.
            cache_dir, revision, local_files_only, token, force_download: for the hub.
            **components: replace those of the file: an object, the path of another file or directory (e.g.
                ``text_encoder="clip_l.safetensors"``, ``tokenizer_3="path/to/t5"``), or None to leave it out; and
                keywords of other libraries, see :mod:`ppsd3.utils.keywords`.

        Raises:
            InputError: an unknown keyword, one that is not done here, or an impossible ``load_components``.
            CheckpointNotFoundError: no such file or directory.
            CheckpointFormatError: parts are neither in the file nor passed; the message names them.
            ConfigError, WeightMismatchError: configuration or weights do not fit.
        """
        check_load_components(load_components)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "revision": revision, "local_files_only": local_files_only}
        hub.update(token=token, force_download=force_download)
        if config is not None:
            config = resolve_checkpoint(config, skip_components=tuple(NETWORKS), **hub)
        settings = {name: components.pop(name) for name in cls._settings if name in components}
        sources = PipelineSources(resolve_file(pretrained_model_link_or_path, **hub), config, components)
        wanted = cls._component_signature()
        sources.require(wanted, cls._optional_components, cls.__name__)
        dtypes = dict(paddle_dtype) if isinstance(paddle_dtype, dict) else {"default": paddle_dtype}
        for name in dtypes:
            floating_dtype(dtypes[name])
        held = cls._storage_dtypes(storage_dtype, [name for name in wanted if name in NETWORKS and sources.loads(name)])
        # Networks last: a mistake in the small parts raises before the large ones are read.
        order = sorted(wanted, key=lambda name: name in NETWORKS)
        made = {name: sources.make(name, dtypes, held, load_components == "on_demand") for name in order}
        return cls(**made, **settings)


class PipelineSources:
    """The sources of a pipeline's components: what was passed, the file, or the directory ``config``."""

    def __init__(self, path: PathLike, config: str | None, given: Mapping[str, Any]) -> None:
        with explaining(path, wanted="network"):
            self.file: SingleFile = SingleFile(path)
        self.config: str | None = config
        self.given: Mapping[str, Any] = given

    def has(self, name: str) -> bool:
        """Whether the pipeline will have the component ``name``."""
        return self.given[name] is not None if name in self.given else name in self.file.sources

    def loads(self, name: str) -> bool:
        """Whether the component ``name`` is read from a file or directory."""
        return self.has(name) and isinstance(self.given.get(name, ""), (str, os.PathLike))

    def require(self, names: Iterable[str], optional: Collection[str], pipeline: str) -> None:
        """Raises CheckpointFormatError if components are missing; the message names them all."""
        missing = [name for name in names if self._is_missing(name) and name not in optional]
        if missing:
            networks = [name for name in missing if name in NETWORKS]
            raise CheckpointFormatError(
                explain(self.file.path, wanted="network")
                or f"{self.file.path} has {', '.join(self.file.sources)}, and {pipeline} also needs "
                f"{', '.join(missing)}. "
                + " ".join(filter(None, (_network_remedy(networks), _tokenizer_remedy(missing))))
            )

    def _is_missing(self, name):
        if name in self.given or name == "scheduler":
            return False
        if name in TOKENIZERS:
            return self.has(TOKENIZERS[name][1]) and not self._folder(name) and not self._has_published(name)
        return name not in self.file.sources

    def _has_published(self, name):
        """Whether the encoder's tokenizer is built in: CLIP's with the published vocabulary."""
        class_, encoder = TOKENIZERS[name]
        if class_ is not CLIPTokenizer or encoder in self.given:
            return class_ is CLIPTokenizer
        return self.file.source(encoder).info(CLIP_TABLE).shape[0] == CLIP_VOCABULARY

    def make(
        self,
        name: str,
        dtypes: Mapping[str, Dtype | None] | None = None,
        held: Mapping[str, Dtype] | None = None,
        on_demand: bool = False,
    ) -> Any:
        """The component ``name``, or None if the pipeline does without it.

        ``dtypes`` and ``held`` are the pipeline's ``paddle_dtype`` and ``storage_dtype`` by component; ``on_demand``
        makes networks that are read when they are used.
        """
        if name in self.given and not isinstance(self.given[name], (str, os.PathLike)):
            return self.given[name]
        if name in NETWORKS:
            return self._make_network(name, dtypes or {}, (held or {}).get(name), on_demand)
        if name in TOKENIZERS:
            return self._tokenizer(name)
        if name == "scheduler":
            return self._scheduler()
        if name in self.given:
            raise InputError(f"`{name}` is the path {self.given[name]}; pass an object, made by its `from_pretrained`.")
        return None

    def _make_network(self, name, dtypes, storage_dtype, on_demand):
        if not self.has(name):
            return None
        class_, dtype = NETWORKS[name], floating_dtype(dtypes.get(name, dtypes.get("default")))
        source, config = self.network(name)
        if not on_demand:
            return class_.from_source(source, config, dtype, storage_dtype)
        path = os.path.abspath(self._path(name))
        read = functools.partial(_read_network, path, name, config, dtype, storage_dtype)
        options = {"config": config, "dtype": dtype, "storage_dtype": storage_dtype}
        return OnDemandNetwork(class_, name, read, config, dtype, path, options)

    def network(self, name: str) -> tuple[TensorSource, dict[str, Any]]:
        """``(source, config)``: the tensors of the network ``name`` under diffusers' names, and its configuration."""
        path = self._path(name)
        if os.path.isdir(path):
            return _open(path, name), NETWORKS[name].load_config(path)
        with explaining(path, wanted="network"):
            file = self.file if path == self.file.path else SingleFile(path)
            source = file.source(name)
            return source, self._network_config(name) or file.configs.get(name) or infer_config(name, source)

    def _path(self, name: str) -> str:
        """The file or the directory that the network ``name`` comes from."""
        path = self.given.get(name)
        return self.file.path if path is None else path if os.path.isdir(path) else resolve_file(path)

    def _folder(self, name: str) -> str | None:
        """The folder of ``config`` for ``name``, or None."""
        folder = os.path.join(self.config, name) if self.config else None
        return folder if folder and os.path.isdir(folder) else None

    def _network_config(self, name: str) -> dict[str, Any] | None:
        folder = self._folder(name)
        has_config = folder and os.path.isfile(os.path.join(folder, NETWORKS[name].config_name))
        return NETWORKS[name].load_config(folder) if has_config else None

    def _scheduler(self):
        folder = self.given.get("scheduler") or self._folder("scheduler")
        if folder:
            saved = FlowMatchEulerDiscreteScheduler.load_config(folder).get("_class_name")
            return getattr(schedulers, str(saved), FlowMatchEulerDiscreteScheduler).from_pretrained(folder)
        return FlowMatchEulerDiscreteScheduler.from_config(self.file.configs.get("scheduler", SCHEDULER))

    def _tokenizer(self, name):
        class_, encoder = TOKENIZERS[name]
        folder = self.given.get(name) or self._folder(name)
        if folder:
            return class_.from_pretrained(folder)
        return class_.published(CLIP_PADDING[name]) if self.has(encoder) else None


def _open(path: str, name: str) -> TensorSource:
    """The tensors of the network ``name`` in a file or a directory of its own, under diffusers' names."""
    if os.path.isdir(path):
        return Checkpoint.open(path, NETWORKS[name].weights_name)
    return SingleFile(path).source(name)


def _read_network(
    path: str, name: str, config: Mapping[str, Any], dtype: Any, storage_dtype: Dtype | None
) -> ModelMixin:
    # The file is opened again, so that its mapping is released with the network.
    return NETWORKS[name].from_source(_open(path, name), config, dtype, storage_dtype)


def _network_remedy(names):
    if not names:
        return ""
    files = ", ".join(f"{name}='path/to/file.safetensors'" for name in names)
    return f"Pass {files} (a file, a directory or an object), or None for text encoders to do without."


def _tokenizer_remedy(names):
    names = [name for name in names if name in TOKENIZERS]
    if not names:
        return ""
    return (
        f"Pass config= a directory in diffusers format that has the folder {names[0]}, or {names[0]}= a directory with "
        f"{'spiece.model' if names[0] == 'tokenizer_3' else 'vocab.json and merges.txt'} or tokenizer.json; or "
        f"{TOKENIZERS[names[0]][1]}=None to do without."
    )
