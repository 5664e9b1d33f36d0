"""Whole pipelines out of the files that Stability AI and ComfyUI publish."""

import functools
import os

from .. import schedulers
from ..models import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel
from ..schedulers import FlowMatchEulerDiscreteScheduler
from ..serialization import Checkpoint, SingleFile
from ..serialization.sd3_configs import SCHEDULER, infer_config
from ..serialization.tensors import floating_dtype
from ..transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer
from ..utils.errors import CheckpointFormatError, InputError
from ..utils.hub import resolve_checkpoint, resolve_file
from .on_demand import OnDemandNetwork, check_load_components

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


class FromSingleFileMixin:
    """``from_single_file`` for a pipeline whose ``__init__`` arguments are its components."""

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path,
        config=None,
        paddle_dtype=None,
        storage_dtype=None,
        load_components="all",
        cache_dir=None,
        revision=None,
        local_files_only=None,
        token=None,
        **components,
    ):
        """Loads a pipeline from one safetensors file, and what that file lacks from others.

        Nothing is downloaded unless a link or a hub id is passed. Configurations come from ``config``, else from the
        file (if ppsd3 wrote it), else from the shapes of its tensors. CLIP's tokenizers are built in; T5's is not, and
        comes from ``config`` or ``tokenizer_3``.

        Args:
            pretrained_model_link_or_path (str or path): the file with the transformer, e.g.
                ``sd3.5_medium.safetensors``, or a link to one on the hub.
            config (str or path, optional): a directory or hub id in diffusers format, for tokenizers, scheduler and
                configurations. Of a hub id, no weights are fetched.
            paddle_dtype (str, paddle dtype, dict or None): of the networks; a dict gives one for each component, with
                ``"default"`` for the rest. None: ``paddle.get_default_dtype()``.
            storage_dtype (str, dict or None), load_components (str): as in ``from_pretrained``.
            cache_dir, revision, local_files_only, token: for the hub.
            **components: in the place of the file's: an object, the path of another file or directory (e.g.
                ``text_encoder="clip_l.safetensors"``, ``tokenizer_3="path/to/t5"``), or None to do without it.

        Raises:
            InputError: an unknown keyword, or another ``load_components``.
            CheckpointNotFoundError: no such file or directory.
            CheckpointFormatError: a part is neither in the file nor passed; the message names all that are missing.
            ConfigError, WeightMismatchError: configuration or weights do not fit.
        """
        check_load_components(load_components)
        cls._refuse_unknown(components)
        hub = {"cache_dir": cache_dir, "revision": revision, "local_files_only": local_files_only, "token": token}
        if config is not None:
            config = resolve_checkpoint(config, skip_components=tuple(NETWORKS), **hub)
        settings = {name: components.pop(name) for name in cls._settings if name in components}
        sources = PipelineSources(resolve_file(pretrained_model_link_or_path, **hub), config, components)
        wanted = cls._component_signature()
        sources.require(wanted, cls._optional_components, cls.__name__)
        dtypes = paddle_dtype if isinstance(paddle_dtype, dict) else {"default": paddle_dtype}
        for name in dtypes:
            floating_dtype(dtypes[name])
        held = cls._storage_dtypes(storage_dtype, [name for name in wanted if name in NETWORKS and sources.loads(name)])
        # Networks last: a mistake in the small parts shows before the large ones are read.
        order = sorted(wanted, key=lambda name: name in NETWORKS)
        made = {name: sources.make(name, dtypes, held, load_components == "on_demand") for name in order}
        return cls(**made, **settings)


class PipelineSources:
    """Where each component of a pipeline comes from: what was passed, the file, or the directory ``config``."""

    def __init__(self, path, config, given):
        self.file, self.config, self.given = SingleFile(path), config, given

    def has(self, name):
        """Whether the pipeline will have the component ``name``."""
        return self.given[name] is not None if name in self.given else name in self.file.sources

    def loads(self, name):
        """Whether the component ``name`` is read from a file or directory."""
        return self.has(name) and isinstance(self.given.get(name, ""), (str, os.PathLike))

    def require(self, names, optional, pipeline):
        """Raises CheckpointFormatError, naming everything that is nowhere to be found."""
        missing = [name for name in names if self._is_missing(name) and name not in optional]
        if missing:
            networks = [name for name in missing if name in NETWORKS]
            raise CheckpointFormatError(
                f"{self.file.path} has {', '.join(self.file.sources)}, and {pipeline} also needs {', '.join(missing)}. "
                + " ".join(filter(None, (_network_remedy(networks), _tokenizer_remedy(missing))))
            )

    def _is_missing(self, name):
        if name in self.given or name == "scheduler":
            return False
        if name in TOKENIZERS:
            return self.has(TOKENIZERS[name][1]) and not self._folder(name) and not self._has_published(name)
        return name not in self.file.sources

    def _has_published(self, name):
        """Whether the built-in vocabulary is that of the encoder; T5's is not built in."""
        class_, encoder = TOKENIZERS[name]
        if class_ is not CLIPTokenizer or encoder in self.given:
            return class_ is CLIPTokenizer
        return self.file.source(encoder).info(CLIP_TABLE).shape[0] == CLIP_VOCABULARY

    def make(self, name, dtypes=None, held=None, on_demand=False):
        """The component ``name``: an object or None.

        ``dtypes`` and ``held`` are the pipeline's ``paddle_dtype`` and ``storage_dtype`` as dicts; ``on_demand`` says
        whether a network is read when it is used.
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

    def network(self, name):
        """``(source, config)``: the tensors of the network ``name`` under diffusers' names, and its configuration."""
        path = self._path(name)
        if os.path.isdir(path):
            return _open(path, name), NETWORKS[name].load_config(path)
        file = self.file if path == self.file.path else SingleFile(path)
        source = file.source(name)
        return source, self._network_config(name) or file.configs.get(name) or infer_config(name, source)

    def _path(self, name):
        """The file or the directory that the network ``name`` comes from."""
        path = self.given.get(name)
        return self.file.path if path is None else path if os.path.isdir(path) else resolve_file(path)

    def _folder(self, name):
        """The folder of ``config`` for ``name``, or None."""
        folder = os.path.join(self.config, name) if self.config else None
        return folder if folder and os.path.isdir(folder) else None

    def _network_config(self, name):
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


def _open(path, name):
    """The tensors of the network ``name`` in a file or a directory of its own, under diffusers' names."""
    if os.path.isdir(path):
        return Checkpoint.open(path, NETWORKS[name].weights_name)
    return SingleFile(path).source(name)


def _read_network(path, name, config, dtype, storage_dtype):
    # The file is opened anew: what is mapped goes with the network.
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
