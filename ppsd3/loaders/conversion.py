"""Converts checkpoints between layouts: a single file, a directory in diffusers format, or in ppdiffusers format.

Networks are built without memory; tensors are copied one at a time from the mapped file to the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..configuration_utils import naming
from ..modeling_utils import to_be_filled
from ..serialization import Checkpoint
from ..serialization.layout import LAYOUTS as DIRECTORY_LAYOUTS, find_named_layout, in_layout
from ..serialization.loading import fit
from ..serialization.pdparams import PdparamsFile
from ..serialization.rearranged import Piece, RearrangedCheckpoint, Recipe
from ..serialization.sd3_keys import original_table, to_original
from ..serialization.single_file import COMPONENTS, CONFIGS_KEY
from ..serialization.source import TensorSource
from ..serialization.tensors import dtype_name, floating_dtype
from ..serialization.writers import StoredTensor, byte_size, write_checkpoint, write_tensors
from ..transformers import SiglipVisionModel
from ..utils.checking import checks_arguments
from ..utils.errors import CheckpointFormatError, InputError
from ..utils.files import atomic_write, read_whole, replacing
from ..utils.hub import resolve_checkpoint, resolve_file
from ..utils.json_files import read_json
from ..utils.pipeline_index import PIPELINE_INDEX, named_class, read_pipeline_index
from ..utils.types import Dtype, PathLike
from ..utils.weight_names import choose_variants, is_former_component_file
from .single_file import NETWORKS, TOKENIZERS, PipelineSources

LAYOUTS = ("original", *DIRECTORY_LAYOUTS)
_PIPELINE, _CONTROL_PIPELINE = "StableDiffusion3Pipeline", "StableDiffusion3ControlNetPipeline"
_QUANTIZATION = "quantization_config"
_OF_TRANSFORMERS = ("text_encoder", "tokenizer", "image_encoder", "feature_extractor")
# Components in directories: networks that are converted, and parts that are copied.
_NETWORKS = {**NETWORKS, "image_encoder": SiglipVisionModel}
_COPIED = ("scheduler", *TOKENIZERS, "feature_extractor")


@checks_arguments
def convert(
    source: PathLike,
    target: PathLike,
    layout: str | None = None,
    dtype: Dtype | None = None,
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
    source_variant: str | None = None,
    config: PathLike | None = None,
    **components: PathLike | None,
) -> str:
    """Writes the checkpoint ``source`` as ``target`` in another layout, dtype or number of files.

    One tensor at a time is in memory. All or nothing, as with :meth:`DiffusionPipeline.save_pretrained`; ``target`` may
    be ``source``.

    Args:
        source: a single file (Stability AI's, ComfyUI's, or one with diffusers' names) or a link to one;
            a directory or hub id in diffusers or ppdiffusers format, of a pipeline or of one network, whose weights may
            be ``model_state.pdparams``; or one ``.pdparams`` file, whose tensors are written as they are. (It is a
            pickle, but nothing in it is run: :mod:`ppsd3.serialization.pdparams`.)
        target: a ``.safetensors`` file for the original layout, else a directory.
        layout: "original", "diffusers", "ppdiffusers" (linear weights [in, out], as Paddle has them) or, for a text
            encoder, "paddlenlp". Default: "original" if ``target`` ends in ``.safetensors``, else "diffusers".
        dtype: "float32", "float16" or "bfloat16". Default: as it is; 8-bit floats become bfloat16.
        variant: e.g. "fp16", in the names of a directory's weights.
        max_shard_size: most bytes of a file in a directory. A single file is never split.
        source_variant: the variant to read from a directory.
        config: a directory or hub id in diffusers format, for what a single file lacks: tokenizers, scheduler.
        **components: paths of parts that are not in a single file, or None to leave a part out, e.g.
            ``text_encoder="clip_l.safetensors"``, ``text_encoder_3=None``.

    Returns:
        The absolute path of ``target``.

    Raises:
        InputError: contradicting arguments, a quantized source, or a target that exists as something else.
        CheckpointError: the source is incomplete or not a Stable Diffusion 3, or the disk has too little space.
    """
    target = os.path.abspath(target)
    is_file = target.endswith(".safetensors")
    if os.fspath(source).endswith(".pdparams"):
        others = {
            "layout": layout,
            "variant": variant,
            "source_variant": source_variant,
            "config": config,
            **components,
        }
        _write_pdparams(source, target, dtype, [name for name, value in others.items() if value is not None])
        return target
    layout = layout or ("original" if is_file else "diffusers")
    _check_arguments(target, layout, is_file, variant)
    dtype = None if dtype is None else dtype_name(floating_dtype(dtype, "dtype"))
    parts = _open(source, source_variant, config, components, whole=not is_file)
    if is_file:
        _write_file(target, parts, dtype)
    elif parts.single:
        (name,) = parts.networks
        _write_network(target, parts.network(name), layout, dtype, variant, max_shard_size)
    else:
        _write_directory(target, parts, layout, dtype, variant, max_shard_size)
    return target


def _check_arguments(target, layout, is_file, variant):
    if layout not in LAYOUTS:
        raise InputError(f"layout is {layout!r}; it is one of {', '.join(LAYOUTS)}.")
    if is_file != (layout == "original"):
        raise InputError(
            f"The target {target} does not go with the layout {layout!r}: 'original' is a file called "
            "....safetensors, the others are directories."
        )
    if is_file and variant is not None:
        raise InputError(f"variant={variant!r} is part of the names in a directory; the file {target} has its name.")
    if os.path.isdir(target) if is_file else os.path.isfile(target):
        raise InputError(f"{target} is a {'directory' if is_file else 'file'} already. Choose another name.")


class _Network:
    """A network to convert: ``model``, without memory, and ``source``, with exactly its tensors in torch's layout."""

    def __init__(self, name: str, config: Mapping[str, Any], source: TensorSource) -> None:
        class_ = _NETWORKS[name]
        source = class_.with_own_names(source)
        if _QUANTIZATION in config:
            raise InputError(
                f"{source.path} is quantized, and only this directory's own layout says how. Convert the model that it "
                "was made from, and quantize the result."
            )
        of = f"the configuration for {source.path}"
        with to_be_filled(), naming(of):
            self.model = class_(**class_.extract_init_arguments(config, source=of))
        _, places, transposed, report = fit(
            self.model, source, self.model._keys_to_ignore_on_load, self.model._tied_keys
        )
        report.raise_if_bad()
        recipes = {
            target: Recipe((Piece(place),), "transposed" if target in transposed else "same")
            for target, place in places.items()
        }
        self.name, self.source = name, RearrangedCheckpoint(source, recipes)

    def config_json(self, dtype: str | None) -> dict[str, Any]:
        """The configuration as the network's class saves it."""
        config = self.model.to_json_dict()
        if "torch_dtype" in config:
            tensors = self.tensors(dtype).values()
            config["torch_dtype"] = next(tensor.dtype for tensor in tensors)
        return config

    def tensors(self, dtype: str | None, layout: str = "diffusers") -> dict[str, StoredTensor]:
        """The tensors by name in ``layout``."""
        return in_layout(self.source, self.model, DIRECTORY_LAYOUTS[layout], dtype)

    def original_tensors(self, dtype: str | None) -> dict[str, StoredTensor]:
        """The tensors by original name, with the prefix of the component in a single file."""
        kind, (prefix, *_) = COMPONENTS[self.name]
        names = [name for name in self.source.keys() if not self._is_implied(name)]
        recipes = to_original(names, original_table(kind, names), self.source.path)
        source = RearrangedCheckpoint(self.source, recipes)
        return {prefix + name: StoredTensor(source, name, dtype) for name in source.keys()}

    def _is_implied(self, name):
        """Whether original files omit the tensor: CLIP-L's projection, if it is the identity."""
        if (self.name, name) != ("text_encoder", "text_projection.weight"):
            return False
        matrix = self.source.load(name, "float32")
        return np.array_equal(matrix, np.eye(*matrix.shape, dtype=np.float32))


class _DirectoryParts:
    """The parts of a pipeline's directory, or of one network's (``single``)."""

    def __init__(self, directory: str, variant: str | None, given: Collection[str]) -> None:
        self.directory, self.given = directory, given
        index = os.path.join(directory, PIPELINE_INDEX)
        self.single = not os.path.isfile(index)
        if self.single:
            self.index: dict[str, Any] = {}
            self.networks, self.others = [_component_of(directory)], []
            self._open({self.networks[0]: variant})
            return
        self.index = read_pipeline_index(directory)
        self.pipeline = self.index.get("_class_name", _PIPELINE)
        listed = [n for n, entry in self.index.items() if isinstance(entry, list) and entry[1] and n not in given]
        self.networks = [name for name in listed if name in _NETWORKS]
        self.others = [name for name in listed if name not in _NETWORKS]
        for name in (name for name in self.others if name not in _COPIED):
            raise CheckpointFormatError(
                f"{index} lists {name!r}, which cannot be converted. Pass {name}=None to leave it out."
            )
        for name in self.networks:
            listed, known = self.index[name][1], _NETWORKS[name].__name__
            if listed != known:
                raise CheckpointFormatError(
                    f"{index} lists {name!r} as a {listed}; what can be converted is a {known}. Pass {name}=None to "
                    "leave it out."
                )
        self._open(choose_variants({n: os.listdir(self.folder(n)) for n in self.networks}, variant))

    def _open(self, variants):
        """Opens all that is converted and reads all that is copied, so that it stays as it is."""
        self._opened = {
            name: (
                _NETWORKS[name].load_config(self.folder(name)),
                Checkpoint.open(self.folder(name), _NETWORKS[name].weights_name, variants[name], pdparams=True),
            )
            for name in self.networks
        }
        self._copied = {
            os.path.join(name, file): content for name in self.others for file, content in self._files(name)
        }

    def _files(self, name):
        with os.scandir(self.folder(name)) as entries:
            for entry in entries:
                if entry.is_file():
                    with open(entry.path, "rb") as file:
                        yield entry.name, file.read()

    def folder(self, name: str) -> str:
        return self.directory if self.single else os.path.join(self.directory, name)

    def network(self, name: str) -> _Network:
        return _Network(name, *self._opened[name])

    def scheduler_config(self) -> dict[str, Any] | None:
        file = os.path.join(self.directory, "scheduler", "scheduler_config.json")
        return None if self.single or "scheduler" not in self.others else read_json(file, purpose="the scheduler")

    def save_others(self, target: str) -> None:
        for path, content in self._copied.items():
            os.makedirs(os.path.join(target, os.path.dirname(path)), exist_ok=True)
            with atomic_write(os.path.join(target, path)) as file:
                file.write(content)

    def classes(self) -> dict[str, str | None]:
        """Component -> class name, None for one that is absent."""
        listed = {name: entry[1] for name, entry in self.index.items() if isinstance(entry, list)}
        return {name: None if name in self.given else class_name for name, class_name in listed.items()}


class _FileParts:
    """The parts of a single file, and those that were passed beside it."""

    def __init__(self, path: str, config: str | None, given: dict[str, Any], whole: bool) -> None:
        self.sources = PipelineSources(path, config, given)
        self.networks = [name for name in NETWORKS if self.sources.has(name)]
        self.pipeline = _CONTROL_PIPELINE if "controlnet" in self.networks else _PIPELINE
        self.single = whole and len(self.networks) == 1 and not given and config is None
        if whole and not self.single:
            self.sources.require([*NETWORKS, *TOKENIZERS], ("controlnet",), _PIPELINE)

    def network(self, name: str) -> _Network:
        source, config = self.sources.network(name)
        return _Network(name, config, source)

    def scheduler_config(self) -> dict[str, Any]:
        return self.sources.make("scheduler").to_json_dict()

    def save_others(self, target: str) -> None:
        for name in ("scheduler", *TOKENIZERS):
            part = self.sources.make(name)
            if part is not None:
                part.save_pretrained(os.path.join(target, name))

    def classes(self) -> dict[str, str | None]:
        made = {name: self.sources.make(name) for name in TOKENIZERS}
        names = {name: NETWORKS[name].__name__ if name in self.networks else None for name in NETWORKS}
        if names["controlnet"] is None:
            del names["controlnet"]  # pipelines without do not know the component
        names.update({name: part and type(part).__name__ for name, part in made.items()})
        return {**names, "scheduler": "FlowMatchEulerDiscreteScheduler"}


def _open(source, variant, config, components, whole):
    known = (*_NETWORKS, *TOKENIZERS, "feature_extractor")
    unknown = [name for name in components if name not in known]
    if unknown:
        raise InputError(f"convert does not know {unknown}; components are {', '.join(known)}.")
    for name in ("image_encoder", "feature_extractor"):
        if components.get(name) is not None:
            raise InputError(f"`{name}` can only be None here, to leave it out of a directory. Convert it by itself.")
    path = os.path.expanduser(os.fspath(source))
    if os.path.isfile(path) or path.endswith(".safetensors"):
        if variant is not None:
            raise InputError(f"source_variant={variant!r} chooses among the weights of a directory; {path} is a file.")
        config = None if config is None else resolve_checkpoint(config, skip_components=tuple(NETWORKS))
        return _FileParts(resolve_file(path), config, components, whole)
    wrong = [name for name, value in components.items() if value is not None]
    if wrong or config is not None:
        raise InputError(
            f"{source} is a directory with its own {', '.join(wrong) or 'configurations'}. Leave the argument out, or "
            "pass None to leave a component out."
        )
    directory = resolve_checkpoint(path, variant=variant, skip_components=tuple(components))
    return read_whole(directory, lambda directory: _DirectoryParts(directory, variant, components))


def _component_of(directory):
    """The name of the component in ``directory``, by its configuration."""
    config = read_json(os.path.join(directory, "config.json"), purpose="a network's configuration")
    name = named_class(config)
    components = [component for component, class_ in _NETWORKS.items() if class_.__name__ == name]
    if not components:
        known = ", ".join(sorted({class_.__name__ for class_ in _NETWORKS.values()}))
        raise CheckpointFormatError(f"{directory} holds a {name}; what can be converted is a pipeline, {known}.")
    # The two CLIP towers are one class; bigG has the other activation.
    return components[-1] if len(components) > 1 and config.get("hidden_act") == "gelu" else components[0]


def _write_pdparams(source, target, dtype, others):
    """Writes the tensors of one ``.pdparams`` file, under their names, as a safetensors file in Paddle layout."""
    if others or not target.endswith(".safetensors"):
        raise InputError(
            f"{source} is one file of tensors, which is written to a file called ....safetensors as it is"
            + (f", without {', '.join(others)}." if others else f", not to {target}.")
            + " To convert a network, pass its directory, where its configuration is too."
        )
    file = PdparamsFile(source)
    dtype = None if dtype is None else dtype_name(floating_dtype(dtype, "dtype"))
    tensors = {name: StoredTensor(file, name, dtype) for name in file.keys()}
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with atomic_write(target, sum(byte_size(tensor) for tensor in tensors.values())) as opened:
        write_tensors(opened, tensors, file.metadata)


def _write_file(target, parts, dtype):
    tensors, configs = {}, {}
    if "image_encoder" in parts.networks:
        raise InputError(
            "A single file has no place for the image_encoder of an IP-adapter. Pass image_encoder=None and "
            "feature_extractor=None to leave it out, or convert to a directory."
        )
    for name in parts.networks:
        network = parts.network(name)
        tensors.update(network.original_tensors(dtype))
        configs[name] = _arguments_only(network.config_json(dtype))
    scheduler = parts.scheduler_config()
    if scheduler is not None:
        configs["scheduler"] = _arguments_only(scheduler)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with atomic_write(target, sum(byte_size(tensor) for tensor in tensors.values())) as file:
        write_tensors(file, tensors, {"format": "pt", CONFIGS_KEY: json.dumps(configs)})


def _arguments_only(config):
    """The constructor's arguments in a saved ``config``."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "torch_dtype"}


def _write_network(directory, network, layout, dtype, variant, max_shard_size):
    kind = type(network.model)
    stem, mark = find_named_layout(layout, kind.weights_name, kind.__name__).files[kind.weights_name]
    config = json.dumps(network.config_json(dtype), indent=2, sort_keys=True) + "\n"
    texts = {network.model.config_name: config}
    write_checkpoint(directory, stem, network.tensors(dtype, layout), variant, max_shard_size, texts, mark)


def _add_vocabularies(directory):
    """The files that PaddleNLP reads vocabularies from, for tokenizers that are in tokenizer.json alone."""
    for name, (class_, _) in TOKENIZERS.items():
        folder = os.path.join(directory, name)
        if os.path.isdir(folder):
            class_.from_pretrained(folder).save_vocabulary(folder)


def _write_directory(target, parts, layout, dtype, variant, max_shard_size):
    from .. import __version__

    own, foreign = DIRECTORY_LAYOUTS[layout].libraries
    key, version = DIRECTORY_LAYOUTS[layout].version
    index: dict[str, Any] = {"_class_name": parts.pipeline, key: version, "_ppsd3_version": __version__}
    for name, class_name in sorted(parts.classes().items()):
        library = foreign if name.startswith(_OF_TRANSFORMERS) else own
        index[name] = [None, None] if class_name is None else [library, class_name]
    networks = {name: parts.network(name) for name in parts.networks}
    needed = sum(byte_size(t) for network in networks.values() for t in network.tensors(dtype, layout).values())
    with replacing(target, is_former_component_file, needed) as new:
        for name, network in networks.items():
            _write_network(os.path.join(new, name), network, layout, dtype, variant, max_shard_size)
        parts.save_others(new)
        if DIRECTORY_LAYOUTS[layout].is_paddle:
            _add_vocabularies(new)
        with atomic_write(os.path.join(new, PIPELINE_INDEX)) as file:
            file.write((json.dumps(index, indent=2) + "\n").encode())
