"""Pipelines out of diffusers checkpoints and into them.

A checkpoint is a directory with ``model_index.json``, which names each component's library and class, and one
sub-directory for each component.
"""

from __future__ import annotations

import inspect
import json
import os
from typing import TYPE_CHECKING, Any, ClassVar

from paddle import nn

from ..layerwise_casting import check_storage_dtype
from ..loaders.host import components_taken
from ..loaders.on_demand import check_load_components
from ..modeling_utils import ModelMixin
from ..serialization import Checkpoint
from ..serialization.layout import LAYOUTS
from ..serialization.writers import byte_size
from ..transformers.paddlenlp import from_paddlenlp
from ..utils.elsewhere import check_argument_names
from ..utils.errors import CheckpointFormatError, CheckpointNotFoundError, ConfigError, InputError
from ..utils.files import atomic_write, read_whole, replacing
from ..utils.foreign import is_foreign
from ..utils.hub import resolve_checkpoint
from ..utils.keywords import LOADING, SAVING, takes_keywords_of
from ..utils.pipeline_index import PIPELINE_INDEX as INDEX_NAME, SETTINGS, not_a_component, read_pipeline_index
from ..utils.recognition import explain_class
from ..utils.threads import works_with_networks
from ..utils.weight_names import choose_variants, is_former_component_file
from .call_defaults import INDEX_ENTRY, checked_defaults
from .component_classes import PIPELINE_CLASSES, component_class, pipeline_class, require_savable
from .residency import OnDemandNetwork, is_network

if TYPE_CHECKING:
    from typing_extensions import Self


# These are loaded first: a mistake in them shows before the large files are read.
_LIGHT_PREFIXES = ("scheduler", "tokenizer", "feature_extractor")


class PipelineCheckpointMixin:
    """``from_pretrained`` and ``save_pretrained`` of the pipelines.

    A subclass has ``components``, and ``dtype`` and ``transformer`` where networks are loaded into it later. The
    arguments of its ``__init__`` are its components, but for its ``_settings``.
    """

    call_defaults: Any
    components: Any
    config: Any
    dtype: Any
    name_or_path: str
    _optional_components: ClassVar[tuple[str, ...]] = ()
    _settings: ClassVar[tuple[str, ...]] = ()  # attributes, and arguments of __init__, that the index keeps as they are
    # prefixes of what storage_dtype is for
    _held_components: ClassVar[tuple[str, ...]] = ("transformer", "controlnet", "text_encoder", "image_encoder")

    @classmethod
    @takes_keywords_of(LOADING, also=components_taken)
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        paddle_dtype: Any = None,
        storage_dtype: str | dict[str, str] | None = None,
        variant: str | None = None,
        load_components: str = "all",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        force_download: bool = False,
        **components: Any,
    ) -> Self:
        """Loads a pipeline.

        Args:
            pretrained_model_name_or_path: a directory, the bundled ``"shapes"``, or a hub id ``"owner/name"``.
            paddle_dtype: of the networks, a name or a Paddle dtype; a dict gives one for each component, with
                ``"default"`` for the rest. None: ``paddle.get_default_dtype()``.
            storage_dtype: "float16" or "bfloat16" holds the linear layers of the transformer and
                the text encoders in it (mapped, if the file has it) and casts them on use; a dict is for some of them.
                See :meth:`~ppsd3.modeling_utils.ModelMixin.enable_layerwise_casting`.
            load_components: "all", or "on_demand": each network is read when it is used and forgotten after
                that, so that memory holds one of them at a time. A call takes longer by the reading.
            variant: e.g. ``"fp16"`` for ``diffusion_pytorch_model.fp16.safetensors``. A component without
                that variant is loaded from its plain weights, if another component has it.
            cache_dir, local_files_only, revision, token, force_download: for a hub id, see
                :func:`ppsd3.utils.hub.resolve_checkpoint`.
            **components: used in place of the saved ones, e.g. ``text_encoder_3=None`` to do without T5 (which is
                then neither downloaded nor read) or ``vae=my_vae``; and keywords of other libraries, see
                :mod:`ppsd3.utils.keywords`.

        Raises:
            CheckpointNotFoundError: no such checkpoint or component directory.
            ConfigError: the index names a pipeline or a component class that ppsd3 does not have.
            InputError: an unknown keyword, one that is not done here, or another ``load_components``.
        """
        check_load_components(load_components)
        directory = resolve_checkpoint(
            pretrained_model_name_or_path,
            variant=variant,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
            token=token,
            force_download=force_download,
            skip_components=tuple(components),
        )
        options = (paddle_dtype, storage_dtype, variant, load_components)
        chosen, arguments, defaults = read_whole(directory, lambda folder: cls._read(folder, components, *options))
        made: Any = chosen(**{**arguments, **components})
        made.name_or_path = os.fspath(pretrained_model_name_or_path)
        made.call_defaults = defaults
        return made

    @classmethod
    def _read(cls, directory, components, paddle_dtype, storage_dtype, variant, load_components):
        """The class to make, its arguments but for the ``components`` that are given, and its calls' defaults; see
        from_pretrained."""
        index = read_pipeline_index(directory)
        chosen = cls._resolve_class(index, directory)
        if not cls._component_signature():  # any pipeline, whose components are known by now
            own = inspect.signature(cls.from_pretrained).parameters
            check_argument_names(
                f"{chosen.__name__}.from_pretrained", components, [*own, *(components_taken(chosen) or ())]
            )
        try:
            defaults = checked_defaults(chosen, index.get(INDEX_ENTRY, {}))
        except InputError as error:
            raise ConfigError(f"{os.path.join(directory, INDEX_NAME)}: {error}") from error
        classes = chosen._saved_classes(index, directory, given=components)
        networks = [name for name, class_ in classes.items() if issubclass(class_, nn.Layer)]
        variants = choose_variants({name: os.listdir(os.path.join(directory, name)) for name in networks}, variant)
        for name in networks:  # headers only: a missing or damaged file shows before anything is loaded
            Checkpoint.open(os.path.join(directory, name), classes[name].weights_name, variants[name])
        dtypes = paddle_dtype if isinstance(paddle_dtype, dict) else {"default": paddle_dtype}
        held = chosen._storage_dtypes(storage_dtype, networks)
        loaded = {}
        for name in sorted(classes, key=lambda name: not name.startswith(_LIGHT_PREFIXES)):
            class_ = classes[name]
            if name not in networks:
                loaded[name] = class_.from_pretrained(directory, subfolder=name)
                continue
            dtype = dtypes.get(name, dtypes.get("default"))
            options = {"paddle_dtype": dtype, "storage_dtype": held.get(name), "variant": variants.get(name)}
            loaded[name] = _read_network(class_, directory, name, options, load_components == "on_demand")
        absent = dict.fromkeys(chosen._component_signature())
        settings = {name: index[name] for name in chosen._settings if name in index}
        return chosen, {**absent, **settings, **loaded}, defaults

    def _read_more(self, class_, directory, subfolder):
        """A network that joins the others: of their dtypes, and on demand where some of them are."""
        on_demand = any(isinstance(part, OnDemandNetwork) for part in self.components.values())
        options = {"paddle_dtype": self.dtype, "storage_dtype": self.components["transformer"].storage_dtype}
        return _read_network(class_, directory, subfolder, options, on_demand)

    @classmethod
    def _storage_dtypes(cls, storage_dtype, networks):
        """dict: network -> dtype that its weights are held in."""
        if storage_dtype is None:
            return {}
        if not isinstance(storage_dtype, dict):
            storage_dtype = {name: storage_dtype for name in networks if name.startswith(cls._held_components)}
        unknown = [name for name in storage_dtype if name not in networks]
        if unknown:
            raise InputError(f"storage_dtype is for {unknown}; the networks that are loaded are {networks}.")
        for dtype in storage_dtype.values():
            check_storage_dtype(dtype)
        return storage_dtype

    @classmethod
    def _component_signature(cls) -> list[str]:
        """Names of the components; none of the base class, which can be any pipeline."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        return [name for name in names if name not in ("self", *cls._settings)]

    @classmethod
    def _resolve_class(cls, index, directory):
        """The class to make: ``cls``, or the one that the index names if ``cls`` is the base."""
        name = index.get("_class_name")
        if name not in PIPELINE_CLASSES:
            raise ConfigError(
                explain_class(directory, name)
                or f"{os.path.join(directory, INDEX_NAME)} is for a {name!r} pipeline; ppsd3 has "
                f"{', '.join(PIPELINE_CLASSES)}. Use a Stable Diffusion 3 or 3.5 checkpoint."
            )
        return cls if cls._component_signature() else pipeline_class(name)

    @classmethod
    def _saved_classes(cls, index, directory, given):
        """Component name -> class, for each that is to be loaded; everything about the directory is checked here."""
        classes = {}
        known = cls._component_signature()
        for name, entry in index.items():
            if name.startswith("_") or name in given or name in SETTINGS:
                continue
            if not isinstance(entry, list):
                raise not_a_component(os.path.join(directory, INDEX_NAME), name, entry)
            class_name = entry[1]
            if class_name is None:
                continue
            if name not in known:
                raise ConfigError(
                    f"{os.path.join(directory, INDEX_NAME)} lists the component {name!r} ({class_name}), which "
                    f"{cls.__name__} does not have. Remove the entry to do without it."
                )
            classes[name] = component_class(name, class_name, directory)
            if not os.path.isdir(os.path.join(directory, name)):
                raise CheckpointNotFoundError(
                    f"{os.path.join(directory, name)} does not exist, though {INDEX_NAME} lists {name!r} as a "
                    f"{class_name}. Download it, or pass `{name}=None` to do without it."
                )
        cls._require_listed(index, given, directory)
        return classes

    @classmethod
    def _require_listed(cls, index, given, directory):
        missing = [n for n in cls._component_signature() if n not in (*index, *given, *cls._optional_components)]
        if missing:
            raise CheckpointFormatError(
                f"{os.path.join(directory, INDEX_NAME)} says nothing of {', '.join(missing)}. Download it again, or "
                f"pass `{missing[0]}=` a component of your own or None."
            )

    @works_with_networks
    @takes_keywords_of(SAVING, also=())
    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        variant: str | None = None,
        max_shard_size: str | int = "10GB",
        layout: str = "diffusers",
        **others: Any,
    ) -> None:
        """Writes the pipeline as diffusers 0.42 reads it; absent components are listed as such.

        Text encoders and tokenizers of PaddleNLP are written as :func:`ppsd3.from_paddlenlp` converts them.

        All or nothing: whatever happens, the directory holds the old pipeline or the new one
        (:mod:`ppsd3.utils.files`). The disk needs room for both.

        Args:
            save_directory: made if missing. Components of the same name in it are replaced; other files stay.
            variant: put into the names of the weight files.
            max_shard_size: weight files are split above it.
            layout: "diffusers", or "ppdiffusers" for what ppdiffusers reads. (ppdiffusers 0.29 has the networks of SD3,
                not those of SD3.5, and no ControlNets.)
            **others: keywords of other libraries, e.g. ``safe_serialization=True``: see :mod:`ppsd3.utils.keywords`.

        Raises:
            InputError: ``save_directory`` is a file, another layout, or a component cannot be saved.
            DiskError: the disk has too little space.
        """
        if layout not in ("diffusers", "ppdiffusers"):
            raise InputError(f"layout is {layout!r}; a pipeline can be saved as 'diffusers' or 'ppdiffusers'.")
        save_directory = os.path.abspath(save_directory)
        if os.path.exists(save_directory) and not os.path.isdir(save_directory):
            raise InputError(f"{save_directory} is a file; a pipeline is saved into a directory. Choose another name.")
        for name, component in self.components.items():
            require_savable(name, component)
        # diffusers' name of a library -> the layout's
        libraries = dict(zip(LAYOUTS["diffusers"].libraries, LAYOUTS[layout].libraries))
        entries = {name: entry for name, entry in self.config.items() if self._is_listed(name)}
        index = {name: [libraries.get(library), class_name] for name, (library, class_name) in entries.items()}
        networks = [part for part in self.components.values() if isinstance(part, ModelMixin)]
        needed = sum(byte_size(parameter) for network in networks for parameter in network.parameters())
        with replacing(save_directory, is_former_component_file, needed) as new:
            for name, component in self.components.items():
                if component is not None:
                    component = from_paddlenlp(component) if is_foreign(component) else component
                    options = {"variant": variant, "max_shard_size": max_shard_size, "layout": layout}
                    options = options if is_network(component) else {}
                    component.save_pretrained(os.path.join(new, name), **options)
            with atomic_write(os.path.join(new, INDEX_NAME)) as file:
                from .. import __version__

                name, version = LAYOUTS[layout].version
                header = {"_class_name": type(self).__name__, name: version, "_ppsd3_version": __version__}
                settings = {name: getattr(self, name) for name in self._settings}
                if self.call_defaults:
                    header[INDEX_ENTRY] = self.call_defaults
                file.write((json.dumps({**header, **index, **settings}, indent=2) + "\n").encode())

    def _is_listed(self, name):
        return getattr(self, name) is not None or name not in self._optional_components


def _read_network(class_, directory, name, options, on_demand):
    if on_demand:
        return OnDemandNetwork.of_directory(class_, directory, name, options)
    return class_.from_pretrained(directory, subfolder=name, **options)
