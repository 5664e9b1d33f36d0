"""What every pipeline can do: hold components, load and save them as a diffusers checkpoint, show progress.

A checkpoint is a directory with ``model_index.json``, which names each component's library and class, and one
sub-directory for each component.
"""

import contextlib
import importlib
import inspect
import json
import os

import paddle
from paddle import nn

from ..compilation import Compilable
from ..configuration_utils import FrozenConfig, read_json
from ..layerwise_casting import check_storage_dtype
from ..loaders import FromSingleFileMixin
from ..loaders.on_demand import check_load_components
from ..quantization import choose_layers
from ..serialization import Checkpoint
from ..utils.errors import CheckpointFormatError, CheckpointNotFoundError, ConfigError, InputError
from ..utils.files import atomic_write, move_into, staging_directory
from ..utils.hub import resolve_checkpoint
from ..utils.paddle_internals import Place, current_place
from ..utils.weight_names import choose_variants
from .residency import (
    ModelOffload,
    OnDemandNetwork,
    Resident,
    SequentialOffload,
    is_network,
    offload_place,
)

INDEX_NAME = "model_index.json"

# Class name in a saved index -> (library that we write beside it, module of ppsd3, class there). The only place that
# knows: a name that transformers or ppdiffusers writes for the same thing is one more line.
COMPONENT_CLASSES = {
    "SD3Transformer2DModel": ("diffusers", "models", "SD3Transformer2DModel"),
    "SD3ControlNetModel": ("diffusers", "models", "SD3ControlNetModel"),
    "SD3MultiControlNetModel": ("diffusers", "models", "SD3MultiControlNetModel"),
    "AutoencoderKL": ("diffusers", "models", "AutoencoderKL"),
    "AutoencoderTiny": ("diffusers", "models", "AutoencoderTiny"),
    "FlowMatchEulerDiscreteScheduler": ("diffusers", "schedulers", "FlowMatchEulerDiscreteScheduler"),
    "FlowMatchHeunDiscreteScheduler": ("diffusers", "schedulers", "FlowMatchHeunDiscreteScheduler"),
    "FlowMatchLCMScheduler": ("diffusers", "schedulers", "FlowMatchLCMScheduler"),
    "DPMSolverMultistepScheduler": ("diffusers", "schedulers", "DPMSolverMultistepScheduler"),
    "UniPCMultistepScheduler": ("diffusers", "schedulers", "UniPCMultistepScheduler"),
    "CLIPTextModelWithProjection": ("transformers", "transformers", "CLIPTextModelWithProjection"),
    "T5EncoderModel": ("transformers", "transformers", "T5EncoderModel"),
    "SiglipVisionModel": ("transformers", "transformers", "SiglipVisionModel"),
    "SiglipImageProcessor": ("transformers", "transformers", "SiglipImageProcessor"),
    "SiglipImageProcessorFast": ("transformers", "transformers", "SiglipImageProcessor"),
    "SiglipImageProcessorPil": ("transformers", "transformers", "SiglipImageProcessor"),
    "CLIPTokenizer": ("transformers", "transformers", "CLIPTokenizer"),
    "CLIPTokenizerFast": ("transformers", "transformers", "CLIPTokenizer"),
    "T5Tokenizer": ("transformers", "transformers", "T5Tokenizer"),
    "T5TokenizerFast": ("transformers", "transformers", "T5Tokenizer"),
}

# Class name in a saved index -> (module of ppsd3, class there).
PIPELINE_CLASSES = {
    name: ("pipelines", name)
    for name in (
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "StableDiffusion3PAGPipeline",
        "StableDiffusion3PAGImg2ImgPipeline",
        "StableDiffusion3ControlNetPipeline",
        "StableDiffusion3ControlNetImg2ImgPipeline",
        "StableDiffusion3ControlNetInpaintingPipeline",
    )
}

# Entries of an index that are values, arguments of some pipeline's __init__ (its ``_settings``), and no components.
SETTINGS = ("pag_applied_layers",)

# These are loaded first: a mistake in them shows before the large files are read.
_LIGHT_PREFIXES = ("scheduler", "tokenizer", "feature_extractor")


class DiffusionPipeline(FromSingleFileMixin):
    """Base of the pipelines. A subclass's ``__init__`` arguments are its components, but for its ``_settings``.

    ``DiffusionPipeline.from_pretrained(path)`` makes the pipeline that the checkpoint names;
    ``StableDiffusion3Pipeline.from_pretrained(path)`` that one.
    """

    config_name = INDEX_NAME
    _component_names = ()
    _optional_components = ()
    _settings = ()  # attributes, and arguments of __init__, that the index keeps as they are
    _quantized_components = ("transformer", "controlnet", "text_encoder_3")
    # prefixes of what storage_dtype is for
    _held_components = ("transformer", "controlnet", "text_encoder", "image_encoder")

    def __init__(self, **components):
        self._progress_bar_config = {}
        self._residency = Resident()
        self.register_modules(**components)

    def register_modules(self, **components):
        """Makes each component an attribute and remembers it as such."""
        self._component_names = (*self._component_names, *components)
        for name, component in components.items():
            setattr(self, name, component)

    @property
    def components(self):
        """dict: name -> component, None for one that is absent; ``Other(**pipe.components)`` shares them."""
        return {name: getattr(self, name) for name in self._component_names}

    @property
    def config(self):
        """FrozenConfig: name -> (library, class name), what ``model_index.json`` holds."""
        return FrozenConfig({name: _index_entry(name, part) for name, part in self.components.items()})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        paddle_dtype=None,
        storage_dtype=None,
        variant=None,
        load_components="all",
        cache_dir=None,
        local_files_only=None,
        revision=None,
        token=None,
        **components,
    ):
        """Loads a pipeline.

        Args:
            pretrained_model_name_or_path (str): a directory, the bundled ``"shapes"``, or a hub id ``"owner/name"``.
            paddle_dtype (str, paddle dtype, dict or None): of the networks; a dict gives one for each component, with
                ``"default"`` for the rest. None: ``paddle.get_default_dtype()``.
            storage_dtype (str, dict or None): "float16" or "bfloat16" holds the linear layers of the transformer and
                the text encoders in it (mapped, if the file has it) and casts them on use; a dict is for some of them.
                See :meth:`~ppsd3.modeling_utils.ModelMixin.enable_layerwise_casting`.
            load_components (str): "all", or "on_demand": each network is read when it is used and forgotten after
                that, so that memory holds one of them at a time. A call takes longer by the reading.
            variant (str or None): e.g. ``"fp16"`` for ``diffusion_pytorch_model.fp16.safetensors``. A component without
                that variant is loaded from its plain weights, if another component has it.
            cache_dir, local_files_only, revision, token: for a hub id, as in ``huggingface_hub``.
            **components: used in place of the saved ones, e.g. ``text_encoder_3=None`` to do without T5 (which is
                then neither downloaded nor read) or ``vae=my_vae``.

        Raises:
            CheckpointNotFoundError: no such checkpoint or component directory.
            ConfigError: the index names a pipeline or a component class that ppsd3 does not have.
            InputError: an unknown keyword, or another ``load_components``.
        """
        check_load_components(load_components)
        if cls is not DiffusionPipeline:
            cls._refuse_unknown(components)
        directory = resolve_checkpoint(
            pretrained_model_name_or_path,
            variant=variant,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
            token=token,
            skip_components=tuple(components),
        )
        index = read_json(os.path.join(directory, INDEX_NAME), purpose="the list of the pipeline's components")
        chosen = cls._resolve_class(index, directory)
        chosen._refuse_unknown(components)
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
        return chosen(**{**absent, **settings, **loaded, **components})

    @classmethod
    def from_pipe(cls, pipeline, **components):
        """A pipeline of this class over the components of another: to change the task without loading twice.

        Networks are shared, with their adapters, quantization and processors; what only the other has is left out.

        Args:
            pipeline (DiffusionPipeline)
            **components: used in place of the other pipeline's, e.g. ``scheduler=...``.

        Raises:
            InputError: components that this class needs and the other pipeline has not.
        """
        if not isinstance(pipeline, DiffusionPipeline):
            raise InputError(f"from_pipe takes a pipeline, not a {type(pipeline).__name__}.")
        if cls is DiffusionPipeline:
            raise InputError("DiffusionPipeline.from_pipe does not say which task; use the class of the task.")
        cls._refuse_unknown(components)
        known = cls._component_signature()
        settings = {name: getattr(pipeline, name) for name in cls._settings if hasattr(pipeline, name)}
        parts = {**settings, **{n: part for n, part in pipeline.components.items() if n in known}, **components}
        missing = [name for name in known if name not in parts and name not in cls._optional_components]
        if missing:
            raise InputError(f"{cls.__name__} needs {', '.join(missing)}, which a {type(pipeline).__name__} has not.")
        made = cls(**parts)
        made._progress_bar_config, made._residency = dict(pipeline._progress_bar_config), pipeline._residency
        return made

    def _read_more(self, class_, directory, subfolder):
        """A network that joins the others: of their dtypes, and on demand where some of them are."""
        on_demand = any(isinstance(part, OnDemandNetwork) for part in self.components.values())
        options = {"paddle_dtype": self.dtype, "storage_dtype": self.transformer.storage_dtype}
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
    def _component_signature(cls):
        return [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", *cls._settings)]

    @classmethod
    def _refuse_unknown(cls, components):
        known = cls._component_signature()
        unknown = [name for name in components if name not in (*known, *cls._settings)]
        if unknown:
            hint = " The dtype is called `paddle_dtype` here." if "torch_dtype" in unknown else ""
            raise InputError(
                f"{cls.__name__}.from_pretrained does not know {unknown}; its components are {known}.{hint}"
            )

    @classmethod
    def _resolve_class(cls, index, directory):
        """The class to make: ``cls``, or the one that the index names if ``cls`` is the base."""
        name = index.get("_class_name")
        if name not in PIPELINE_CLASSES:
            raise ConfigError(
                f"{os.path.join(directory, INDEX_NAME)} is for a {name!r} pipeline; ppsd3 has "
                f"{', '.join(PIPELINE_CLASSES)}. Use a Stable Diffusion 3 or 3.5 checkpoint."
            )
        return pipeline_class(name) if cls is DiffusionPipeline else cls

    @classmethod
    def _saved_classes(cls, index, directory, given):
        """Component name -> class, for each that is to be loaded; everything about the directory is checked here."""
        classes = {}
        known = cls._component_signature()
        for name, entry in index.items():
            if name.startswith("_") or name in given or name in SETTINGS:
                continue
            if not isinstance(entry, (list, tuple)) or len(entry) != 2:
                raise ConfigError(
                    f"{os.path.join(directory, INDEX_NAME)} has {name!r}: {entry!r}; a component is a pair of library "
                    "and class name. Remove the entry, or download the file again."
                )
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

    def save_pretrained(self, save_directory, variant=None, max_shard_size="10GB"):
        """Writes the pipeline as diffusers 0.42 reads it; absent components are listed as such.

        Everything is first written beside ``save_directory`` and moved there at the end, so a failure leaves what
        was there before.

        Args:
            save_directory (str): made if missing. Components of the same name in it are replaced.
            variant (str or None): put into the names of the weight files.
            max_shard_size (str or int): weight files are split above it.

        Raises:
            InputError: ``save_directory`` is a file, or a component cannot be saved.
        """
        save_directory = os.path.abspath(save_directory)
        if os.path.exists(save_directory) and not os.path.isdir(save_directory):
            raise InputError(f"{save_directory} is a file; a pipeline is saved into a directory. Choose another name.")
        index = {name: list(entry) for name, entry in self.config.items() if self._is_listed(name)}
        os.makedirs(os.path.dirname(save_directory), exist_ok=True)
        with staging_directory(save_directory) as staging:
            for name, component in self.components.items():
                if component is not None:
                    options = {"variant": variant, "max_shard_size": max_shard_size}
                    options = options if is_network(component) else {}
                    component.save_pretrained(os.path.join(staging, name), **options)
            with atomic_write(os.path.join(staging, INDEX_NAME)) as file:
                from .. import __version__

                # diffusers reads the version that wrote a file to decide on legacy treatment; 0.42.1 needs none.
                header = {
                    "_class_name": type(self).__name__,
                    "_diffusers_version": "0.42.1",
                    "_ppsd3_version": __version__,
                }
                settings = {name: getattr(self, name) for name in self._settings}
                file.write((json.dumps({**header, **index, **settings}, indent=2) + "\n").encode())
            move_into(staging, save_directory, last=INDEX_NAME)

    def _is_listed(self, name):
        return getattr(self, name) is not None or name not in self._optional_components

    def to(self, *args, device=None, dtype=None):
        """Moves the networks to a device (``"cpu"``, ``"gpu:0"``) and / or a dtype; returns the pipeline."""
        self._refuse_moving("to()")
        for value in args:
            if isinstance(value, Place) or (isinstance(value, str) and _is_device(value)):
                device = value
            else:
                dtype = value
        if device is not None:
            paddle.device.set_device(device) if isinstance(device, str) else None
        for network in self._networks():
            network.to(device=device, dtype=dtype)
        return self

    def quantize(self, kind, components=None):
        """Holds the networks that take the time and the memory in int8; returns the pipeline.

        Args:
            kind (str): "int8"; see :meth:`ppsd3.modeling_utils.ModelMixin.quantize`, which also has ``skip``.
            components (sequence of str, optional): names of the networks. Default: the transformer and T5, if there.

        Raises:
            InputError: a name that is no network here, or what a network's own ``quantize`` refuses; then nothing has
                changed.
        """
        if components is None:
            components = [name for name in self._quantized_components if getattr(self, name, None) is not None]
        networks = self._chosen(components, nn.Layer, "the networks of this pipeline are")
        for network in networks:
            choose_layers(network, kind)
        for network in networks:
            network.quantize(kind)
        return self

    def compile(self, components=None):
        """Runs networks as static graphs from the next call on; returns the pipeline.

        The first picture takes longer: it traces each network, once for all sizes and steps. Meant for GPUs; a CPU is
        faster without, since graphs cannot hold the native kernels.

        Args:
            components (sequence of str, optional): names of the networks. Default: the transformer and the VAE.

        Raises:
            InputError: a name that is no network here, or one of a network that has nothing to compile.
        """
        for network in self._chosen(components, Compilable, "what can be compiled in this pipeline is"):
            network.compile()
        return self

    def _chosen(self, components, kind, introduction):
        """The components of these names (one, several, or None for all) that are of the class ``kind``.

        Raises:
            InputError: another name, or none; ``introduction`` and what there is are in the message.
        """
        absent = [name for name, part in self.components.items() if isinstance(part, OnDemandNetwork)]
        if absent:
            raise InputError(
                f"{', '.join(absent)} are loaded on demand, so nothing can be done to them between calls. Load the "
                "pipeline without load_components='on_demand', change it, and save it: then load that on demand."
            )
        there = {name: part for name, part in self.components.items() if isinstance(part, kind)}
        names = there if components is None else (components,) if isinstance(components, str) else components
        if not names or any(name not in there for name in names):
            known = ", ".join(there) or "none"
            raise InputError(f"components is {list(names)}; {introduction} {known}. Name one or more of them.")
        return [there[name] for name in names]

    @contextlib.contextmanager
    def using(self, name):
        """The network called ``name``, ready to compute as long as the block lasts.

        ``with pipe.using("vae") as vae:`` reads one that is loaded on demand, and brings one that is offloaded to its
        device; otherwise it gives ``pipe.vae`` as it is.
        """
        part = getattr(self, name)
        with part.resident() if isinstance(part, OnDemandNetwork) else self._residency.resident(part) as network:
            yield network

    def _tell(self, name, method, **options):
        """Calls ``method`` (str) of the network called ``name``; of one on demand, whenever it has been read."""
        part = getattr(self, name)
        if isinstance(part, OnDemandNetwork):
            part.call_after_loading(method, **options)
        else:
            getattr(part, method)(**options)

    def enable_model_cpu_offload(self, device="gpu"):
        """Keeps each network in the computer's memory and brings it to the GPU only while it is used.

        Memory of the GPU: the largest network, for some tenths of a second per call.

        Args:
            device (str): "gpu" or e.g. "gpu:1".

        Raises:
            InputError: there is no such GPU, or networks are offloaded or loaded on demand already.
        """
        self._offload(ModelOffload, device)

    def enable_sequential_cpu_offload(self, device="gpu"):
        """Keeps the weights in the computer's memory and brings each layer's to the GPU while it is called.

        Memory of the GPU: the largest layer; each step copies all weights. Arguments and errors are those of
        :meth:`enable_model_cpu_offload`.
        """
        self._offload(SequentialOffload, device)

    def _offload(self, kind, device):
        self._refuse_moving("offloading")
        place = offload_place(device)
        self._residency = kind(self._networks(), place)

    def _refuse_moving(self, what):
        absent = [name for name, part in self.components.items() if isinstance(part, OnDemandNetwork)]
        if absent:
            raise InputError(
                f"{what} cannot move networks that are loaded on demand ({', '.join(absent)}). Give paddle_dtype to "
                "from_pretrained; they are read to Paddle's present device."
            )
        if self._residency.place is not None:
            raise InputError(f"{what} cannot move networks that are offloaded already. Load the pipeline again.")

    def _networks(self):
        return [part for part in self.components.values() if isinstance(part, nn.Layer)]

    @property
    def dtype(self):
        """Of the transformer, or of the first network if there is none."""
        networks = [part for part in self.components.values() if is_network(part)]
        main = getattr(self, "transformer", None) or (networks[0] if networks else None)
        return main.dtype if main is not None else paddle.get_default_dtype()

    @property
    def device(self):
        """Where the networks compute, as ``paddle.CPUPlace()`` or ``paddle.CUDAPlace(i)``."""
        if self._residency.place is not None:
            return self._residency.place
        for network in self._networks():
            for parameter in network.parameters():
                return parameter.place
        return current_place()

    def set_progress_bar_config(self, **options):
        """Options of ``tqdm`` for the progress bar, e.g. ``disable=True``."""
        self._progress_bar_config = options

    def progress_bar(self, iterable=None, total=None):
        """A ``tqdm`` bar over ``iterable`` or up to ``total``, with the options set above."""
        from tqdm.auto import tqdm

        return tqdm(iterable, total=total, **self._progress_bar_config)

    def __repr__(self):
        lines = [f"  {name}: {type(component).__name__}" for name, component in self.components.items()]
        return "\n".join([f"{type(self).__name__} {{", *lines, "}"])


def component_class(name, class_name, directory):
    """The class of ppsd3 for the component ``name`` that the index in ``directory`` calls a ``class_name``.

    Raises:
        ConfigError: there is none.
    """
    if class_name not in COMPONENT_CLASSES:
        raise ConfigError(
            f"The component {name!r} of {directory} is a {class_name!r}, which ppsd3 does not have (it has "
            f"{', '.join(COMPONENT_CLASSES)}). Pass `{name}=` an object of your own, or `{name}=None`."
        )
    return _import(*COMPONENT_CLASSES[class_name][1:])


def pipeline_class(name):
    """The pipeline class called ``name``, one of ``PIPELINE_CLASSES``."""
    return _import(*PIPELINE_CLASSES[name])


def _read_network(class_, directory, name, options, on_demand):
    if on_demand:
        return OnDemandNetwork.of_directory(class_, directory, name, options)
    return class_.from_pretrained(directory, subfolder=name, **options)


def _import(module, name):
    return getattr(importlib.import_module("..." + module, __name__), name)


def _index_entry(name, component):
    """(library, class name) that the index holds for a component; (None, None) for one that is absent."""
    if component is None:
        return None, None
    kind = component.network_class if isinstance(component, OnDemandNetwork) else type(component)
    for class_ in kind.__mro__:  # a user's subclass is saved as the class that it extends
        if class_.__name__ in COMPONENT_CLASSES:
            return COMPONENT_CLASSES[class_.__name__][0], class_.__name__
    raise InputError(
        f"The component {name!r} is a {type(component).__name__}, which has no name in a diffusers checkpoint. Use one "
        f"of {', '.join(COMPONENT_CLASSES)} or a subclass."
    )


def _is_device(value):
    return value.split(":")[0] in ("cpu", "gpu", "cuda", "xpu", "npu")
