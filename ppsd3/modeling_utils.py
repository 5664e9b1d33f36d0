"""Base class of the networks: loading, saving, dtypes, quantization, gradient checkpointing."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import paddle

from .adapters import PeftAdapterMixin
from .compilation import ForwardReplaceable
from .configuration_utils import ConfigMixin, naming
from .layerwise_casting import cast_layers_, check_storage_dtype, held_weights, storage_dtype_of
from .ops import CastingLinear, QuantizedLinear
from .ops.adapted import checkpoint_tensors, is_attached, set_aside
from .quantization import (
    CONFIG_KEY,
    QuantizableModel,
    config_entries,
    is_quantized,
    prepare_for_loading,
    quantize_,
)
from .serialization import Checkpoint, LoadReport, SingleFile, load_weights
from .serialization.layout import find_named_layout, in_layout, own_names
from .serialization.loading import target_dtype
from .serialization.sd3_configs import infer_config
from .serialization.source import TensorSource
from .serialization.tensor_dict import TensorDict
from .serialization.tensors import NUMPY_DTYPES, cast, dtype_name, floating_dtype, is_floating, put
from .serialization.writers import write_checkpoint
from .utils.device import available_memory, device_name, tune_thread, usable_device
from .utils.elsewhere import METHODS, NoAttributeError
from .utils.errors import ConfigError, InputError
from .utils.files import read_whole
from .utils.gpu import require_code
from .utils.hub import resolve_checkpoint, resolve_file
from .utils.keywords import LOADING, MOVING, SAVING, SWITCHES, takes_keywords_of
from .utils.paddle_internals import LazyGuard, Place, copy_to, place_of, set_layer_dtype
from .utils.recognition import explaining
from .utils.threads import Shared, changes_networks, process_wide, works_with_networks
from .utils.types import Dtype, Names, PathLike

if TYPE_CHECKING:
    from typing_extensions import Self


class AttentionSwitches:
    """Switches of other libraries with which attention does not hold all of its weights at once, as it never does here.

    Mixed into networks and pipelines; they change nothing.
    """

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Changes nothing: attention is memory-efficient by itself."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Changes nothing, as :meth:`enable_xformers_memory_efficient_attention`."""

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Changes nothing: attention runs in pieces by itself."""

    def disable_attention_slicing(self) -> None:
        """Changes nothing, as :meth:`enable_attention_slicing`."""


class ModelMixin(Shared, ForwardReplaceable, AttentionSwitches, PeftAdapterMixin, QuantizableModel, ConfigMixin):
    """Base of the networks. Parameter names are the diffusers (or transformers) checkpoint names.

    Attributes that a class may set, beside those of :class:`~ppsd3.quantization.QuantizableModel`:
        weights_name: stem of its weights files, ``diffusion_pytorch_model`` or ``model``.
        extra_saved_config: entries of the saved ``config.json`` beside the arguments, e.g.
            ``{"architectures": ["T5EncoderModel"], "model_type": "t5"}`` for transformers.
        _keep_in_fp32_modules: modules that stay float32 in a float16 model.
        _keys_to_ignore_on_load: regular expressions of checkpoint names that may be left unused.
        _tied_keys: alias -> owner, two names of one tensor; a file may hold either or both.
        _components: names of the pipeline's components of this class, for :meth:`from_single_file`.
    """

    config_name = "config.json"
    weights_name: str = "diffusion_pytorch_model"
    extra_saved_config: dict[str, Any] = {}
    _keep_in_fp32_modules: tuple[str, ...] = ()
    _keys_to_ignore_on_load: tuple[str, ...] = ()
    _tied_keys: dict[str, str] = {}
    gradient_checkpointing: bool = False
    _components: tuple[str, ...] = ()
    _execution_place: Place | None = None  # of a model whose layers are brought to a device one by one

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        tune_thread()
        require_code(paddle.get_device())
        super().__init__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise NoAttributeError(type(self), name, METHODS) from None

    @classmethod
    def _opened(cls, directory: str, variant: str | None) -> tuple[dict[str, Any], Checkpoint]:
        """The configuration and the weights in ``directory``."""
        # Absolute: a folder that is missing is not looked for on a hub.
        return cls.load_config(os.path.abspath(directory)), Checkpoint.open(directory, cls.weights_name, variant)

    @overload
    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: PathLike, *, output_loading_info: Literal[True], **options: Any
    ) -> tuple[Self, dict[str, list[str]]]: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike,
        subfolder: str | None = None,
        variant: str | None = None,
        paddle_dtype: Dtype | None = None,
        storage_dtype: Dtype | None = None,
        cache_dir: PathLike | None = None,
        revision: str | None = None,
        local_files_only: bool | None = None,
        token: str | None = None,
        force_download: bool = False,
        output_loading_info: Literal[False] = False,
        **overrides: Any,
    ) -> Self: ...

    @classmethod
    @takes_keywords_of(LOADING, also=lambda cls: cls._known_keys())
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike,
        subfolder: str | None = None,
        variant: str | None = None,
        paddle_dtype: Dtype | None = None,
        storage_dtype: Dtype | None = None,
        cache_dir: PathLike | None = None,
        revision: str | None = None,
        local_files_only: bool | None = None,
        token: str | None = None,
        force_download: bool = False,
        output_loading_info: bool = False,
        **overrides: Any,
    ) -> Self | tuple[Self, dict[str, list[str]]]:
        """Loads a model, in evaluation mode, from a diffusers-format checkpoint in torch or Paddle layout.

        Loading is strict: every tensor must fit. On the CPU, tensors that already have the wanted dtype are mapped, not
        read: keep the file while the model is in use.

        Args:
            pretrained_model_name_or_path: local directory, hub id ("org/name") or "shapes".
            subfolder: component directory in it, e.g. "transformer".
            variant: e.g. "fp16" for ``diffusion_pytorch_model.fp16.safetensors``. No fallback.
            paddle_dtype: dtype of the floating-point tensors. Default: ``paddle.get_default_dtype()``, float32 unless
                it was changed. int8 weights stay int8.
            storage_dtype: "float16" or "bfloat16" for layerwise casting, see :meth:`enable_layerwise_casting`.
            cache_dir, revision, local_files_only, token, force_download: for the hub, see
                :func:`ppsd3.utils.hub.resolve_checkpoint`.
            output_loading_info: return a pair; the second has the names of tensors by ``missing_keys``,
                ``unexpected_keys``, ``mismatched_keys`` and ``error_msgs``. Only unexpected ones that may be left
                unused can be there: the others are errors.
            **overrides: entries that replace those of ``config.json``, e.g. ``extra_conditioning_channels=1``; and
                keywords of other libraries, see :mod:`ppsd3.utils.keywords`.

        Raises:
            InputError: ``paddle_dtype`` is not a floating-point dtype, or ``storage_dtype`` not a 16-bit one; or a
                keyword that is not done here.
            CheckpointNotFoundError: no such directory, model, variant, or shard.
            CheckpointFormatError: a damaged file or a pickle.
            ConfigError: ``config.json`` has an unknown key.
            WeightMismatchError: tensors are missing, unexpected or of another shape.
        """
        dtype = floating_dtype(paddle_dtype)
        if storage_dtype is not None:
            check_storage_dtype(storage_dtype)
        directory = resolve_checkpoint(
            pretrained_model_name_or_path,
            subfolder=subfolder or "",
            variant=variant,
            cache_dir=cache_dir,
            revision=revision,
            local_files_only=local_files_only,
            token=token,
            force_download=force_download,
        )
        config, checkpoint = read_whole(directory, lambda folder: cls._opened(folder, variant), subfolder)
        path = os.path.join(directory, subfolder or "", cls.config_name)
        model, report = cls._filled_from(checkpoint, {**config, **overrides}, dtype, storage_dtype, path)
        return (model, report.as_loading_info()) if output_loading_info else model

    @classmethod
    @takes_keywords_of(LOADING, also=lambda cls: cls._known_keys())
    def from_single_file(
        cls,
        pretrained_model_link_or_path: PathLike,
        config: PathLike | Mapping[str, Any] | None = None,
        subfolder: str | None = None,
        paddle_dtype: Dtype | None = None,
        storage_dtype: Dtype | None = None,
        cache_dir: PathLike | None = None,
        revision: str | None = None,
        local_files_only: bool | None = None,
        token: str | None = None,
        force_download: bool = False,
        **overrides: Any,
    ) -> Self:
        """Loads a model, in evaluation mode, from one safetensors file.

        The file may have the names of Stability AI, ComfyUI or diffusers, hold other networks too, and be in 8-bit
        floats.

        Args:
            pretrained_model_link_or_path: a file, or a link to one on the hub.
            config: the configuration, or a directory (or hub id) in diffusers format that has it. Default: the one in
                the file, if ppsd3 wrote it, else inferred from shapes, which is enough for all published models.
            subfolder: "text_encoder" or "text_encoder_2", if the file holds several networks of this class; also the
                folder of ``config``.
            paddle_dtype, storage_dtype: see :meth:`from_pretrained`.
            cache_dir, revision, local_files_only, token, force_download: for the hub.
            **overrides: as in :meth:`from_pretrained`.

        Raises:
            InputError: an impossible dtype or ``subfolder``, or ``subfolder`` is needed; or a keyword that is not done
                here.
            CheckpointNotFoundError, CheckpointFormatError, ConfigError, WeightMismatchError: as from_pretrained.
        """
        dtype = floating_dtype(paddle_dtype)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "revision": revision, "local_files_only": local_files_only}
        hub.update(token=token, force_download=force_download)
        path = resolve_file(pretrained_model_link_or_path, **hub)
        with explaining(path, wanted="network"):
            file = SingleFile(path)
            component = cls._component_in(file, subfolder)
            if isinstance(config, (str, os.PathLike)):
                directory = resolve_checkpoint(config, subfolder=component, **hub)
                folder = os.path.join(directory, component)
                config = cls.load_config(folder if os.path.isdir(folder) else directory)
            source = file.source(component)
            config = config or file.configs.get(component) or infer_config(component, source)
            return cls.from_source(source, {**config, **overrides}, dtype, storage_dtype)

    @classmethod
    def from_source(
        cls,
        source: TensorSource,
        config: Mapping[str, Any],
        dtype: paddle.dtype | None = None,
        storage_dtype: Dtype | None = None,
        config_path: str = "its configuration",
    ) -> Self:
        """The model that ``config`` describes, in evaluation mode, with the weights of ``source``.

        ``dtype`` and ``storage_dtype`` are as in :meth:`from_pretrained`, None being the source's own dtype;
        ``config_path`` is what errors call the configuration.
        """
        return cls._filled_from(source, config, dtype, storage_dtype, config_path)[0]

    @classmethod
    def _filled_from(
        cls,
        source: TensorSource,
        config: Mapping[str, Any],
        dtype: paddle.dtype | None,
        storage_dtype: Dtype | None,
        config_path: str,
    ) -> tuple[Self, LoadReport]:
        """See :meth:`from_source`."""
        if storage_dtype is not None:
            check_storage_dtype(storage_dtype)
        config, source = dict(config), cls.with_own_names(source)
        quantization = config.pop(CONFIG_KEY, None)
        with to_be_filled(), naming(config_path):
            model = cls(**cls.extract_init_arguments(config, source=config_path))
        prepare_for_loading(model, quantization, source)
        if storage_dtype is not None:
            cast_layers_(model, storage_dtype, compute_dtype=dtype or floating_dtype(None))
        report = model.load_weights(source, dtype)
        model.eval()
        return model, report

    @classmethod
    @takes_keywords_of(LOADING, also=lambda cls: cls._known_keys())
    def from_config(cls, config: Mapping[str, Any], paddle_dtype: Dtype | None = None, **overrides: Any) -> Self:
        """The model that ``config`` describes, with ``overrides`` on top and weights drawn at random.

        Args:
            paddle_dtype: default ``paddle.get_default_dtype()``.

        Raises:
            ConfigError: a key of ``config`` is not an argument of the class (the message gives the nearest one), a
                value is not of the argument's type or out of its range, or the weights need more memory than is free.
            UnknownArgumentError: the same of ``overrides``.
        """
        arguments = cls.extract_init_arguments({**config, **overrides})
        if not is_to_be_filled():
            _check_memory(cls, arguments)
        model = cls(**arguments)
        return model if paddle_dtype is None else model.to(dtype=paddle_dtype)

    @classmethod
    def with_own_names(cls, source: TensorSource) -> TensorSource:
        """``source`` with this class's parameter names, whichever library has written the file."""
        return own_names(source)

    @classmethod
    def _component_in(cls, file: SingleFile, subfolder: str | None) -> str:
        """The component of a single file that this class loads."""
        if subfolder is None:
            there = [name for name in cls._components if name in file.sources]
            if len(there) > 1:
                raise InputError(f"{file.path} has {' and '.join(there)}. Say which one: subfolder={there[0]!r}.")
            return (there or cls._components)[0]
        if subfolder not in cls._components:
            raise InputError(f"subfolder is {subfolder!r}; a {cls.__name__} is called {' or '.join(cls._components)}.")
        return subfolder

    @changes_networks
    def load_weights(self, source: TensorSource, dtype: Dtype | None = None) -> LoadReport:
        """Fills this model from ``source``, strictly; see :func:`ppsd3.serialization.load_weights`.

        Args:
            dtype: of the floating-point tensors. Default: the source's own.
        """
        report = load_weights(
            self,
            source,
            dtype,
            self._keep_in_fp32_modules,
            self._keys_to_ignore_on_load,
            self._tied_keys,
            held=held_weights(self),
        )
        self._note_dtype()
        return report

    @works_with_networks
    @takes_keywords_of(SAVING, also=())
    def save_pretrained(
        self,
        save_directory: PathLike,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        layout: str = "diffusers",
        **others: Any,
    ) -> None:
        """Writes ``config.json`` and the weights, in their present dtype, as diffusers or transformers read them.

        All or nothing: whatever happens, the directory holds the old model or the new one (:mod:`ppsd3.utils.files`).
        The disk needs room for both.

        Args:
            save_directory: made if missing. Other files in it stay.
            variant: part of the file names, e.g. "fp16".
            max_shard_size: bytes per file at most, or e.g. "10GB".
            layout: "diffusers", or "ppdiffusers" for files that ppdiffusers and its text encoders read; a text encoder
                can be saved for PaddleNLP itself, as "paddlenlp".
            **others: keywords of other libraries, e.g. ``safe_serialization=True``: see :mod:`ppsd3.utils.keywords`.

        Raises:
            InputError: another layout, or an int8 model in one that is not diffusers'; and what
                :func:`ppsd3.serialization.writers.write_checkpoint` raises.
            DiskError: the disk has too little space.
        """
        written = find_named_layout(layout, self.weights_name, type(self).__name__)
        if written.is_paddle and self.is_quantized:
            raise InputError(
                f"This {type(self).__name__} is in int8, which {layout} does not read. Save the model that it was made "
                "from."
            )
        config = json.dumps(self.to_json_dict(), indent=2, sort_keys=True) + "\n"
        own = {name: t for name, t in checkpoint_tensors(self).items() if name not in self._tied_keys}
        tensors = in_layout(TensorDict(own), self, written) if written.is_paddle else own
        stem, mark = written.files[self.weights_name]
        texts = {self.config_name: config}
        write_checkpoint(os.fspath(save_directory), stem, tensors, variant, max_shard_size, texts, mark)

    def to_json_dict(self) -> dict[str, Any]:
        """The configuration as it is saved, ``extra_saved_config`` included."""
        return {**super().to_json_dict(), **self.extra_saved_config, **config_entries(self)}

    @changes_networks
    def quantize(self, kind: str, skip: Names = ()) -> Self:
        """Quantizes the weights of the slowest layers to int8, in place, and returns the model. For inference, or to
        train an adapter on them.

        These layers take a quarter of float32's memory. On a CPU with VNNI their products are in int8 too, with
        activations quantized per token (:mod:`ppsd3.ops.quantized`); elsewhere weights are dequantized when used.
        ``save_pretrained`` and ``from_pretrained`` keep the model quantized.

        Args:
            kind: "int8".
            skip: modules that are not quantized, e.g. ``("ff_context", "transformer_blocks.0")``.

        Raises:
            InputError: see :func:`ppsd3.quantization.quantize_`.
        """
        quantize_(self, kind, skip)
        self._forget_graphs()
        return self

    @changes_networks
    def enable_layerwise_casting(self, storage_dtype: Dtype = "float16", compute_dtype: Dtype | None = None) -> Self:
        """Stores the weights of linear layers in 16 bits, in place, and returns the model.

        Half the memory of float32. Each layer casts its weights when it is used, so only the weights are rounded.
        ``from_pretrained(..., storage_dtype=...)`` keeps a file of that dtype mapped. The weights cannot be trained; an
        adapter on them can.

        Args:
            storage_dtype: "float16" or "bfloat16".
            compute_dtype: can only be the dtype that the model has.

        Raises:
            InputError: another ``compute_dtype``; see :func:`ppsd3.layerwise_casting.cast_layers_`.
        """
        if compute_dtype is not None and floating_dtype(compute_dtype, "compute_dtype") != self.dtype:
            raise InputError(
                f"compute_dtype is {compute_dtype}, and the model {self.dtype}. Call to(dtype=...) before."
            )
        cast_layers_(self, storage_dtype)
        return self

    @property
    def is_quantized(self) -> bool:
        """Whether this model has int8 layers."""
        return is_quantized(self)

    @changes_networks
    def train(self, mode: bool = True) -> None:
        """Training mode; evaluation mode with ``mode=False``.

        Raises:
            InputError: the model is quantized, and something else of it than adapters is to be trained.
        """
        if not mode:
            self.eval()
            return
        trained = (name for name, p in self.named_parameters() if not p.stop_gradient)
        if self.is_quantized and any(".adapters." not in name and not is_attached(self, name) for name in trained):
            raise InputError(
                f"This {type(self).__name__} is in int8, and rounded weights cannot be trained. Train the model that "
                "it was made from and quantize the result, or add_adapter() and train that."
            )
        super().train()

    @property
    def dtype(self) -> paddle.dtype:
        """Dtype of the first floating-point parameter outside ``_keep_in_fp32_modules``."""
        kept = set(self._keep_in_fp32_modules)
        named = [(name, p.dtype) for name, p in self.named_parameters() if is_floating(p.dtype)]
        default = named[0][1] if named else floating_dtype(None)
        return next((dtype for name, dtype in named if not kept & set(name.split("."))), default)

    @property
    def storage_dtype(self) -> paddle.dtype | None:
        """The dtype of :meth:`enable_layerwise_casting`, or None."""
        return storage_dtype_of(self)

    @property
    def device(self) -> Place:
        """Where the model computes: the place of its first parameter, or the one to which its layers are brought."""
        return self._execution_place or next(iter(self.parameters())).place

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of scalars in the weights, those stored in int8 or 16 bits included; or in trainable parameters."""
        number = sum(int(p.size) for p in self.parameters() if not (only_trainable and p.stop_gradient))
        held = (layer.weight for layer in self.sublayers() if isinstance(layer, (CastingLinear, QuantizedLinear)))
        return number if only_trainable else number + sum(int(weight.size) for weight in held)

    @changes_networks
    @takes_keywords_of(MOVING, also=())
    def to(self, device: Any = None, dtype: Any = None, blocking: bool | None = None, **others: Any) -> Self:
        """Moves and casts in place, and returns the model: ``to("gpu")``, ``to(dtype="float16")``, ``to("float16")``.

        ``_keep_in_fp32_modules`` stay float32 in a float16 model; integers and booleans keep their dtype.

        Args:
            device: "cpu", "gpu" or e.g. "gpu:1"; "cuda" means "gpu". A dtype may stand in its place.
            dtype: Paddle's or torch's, or its name.
            blocking: whether the copies are complete on return.
            **others: keywords of other libraries, see :mod:`ppsd3.utils.keywords`.

        Raises:
            InputError: a device that Paddle has not, or something that is neither device nor dtype.
        """
        device, dtype = read_destination([device, dtype])
        if dtype is not None:
            self._cast(dtype)
        if device is not None:
            super().to(device=device, blocking=blocking)
            for tensor in set_aside(self):
                put(tensor, copy_to(tensor.detach(), place_of(device)))
        return self

    def _cast(self, dtype: paddle.dtype) -> None:
        with paddle.no_grad():
            held = held_weights(self)
            for name, slot in list(self.named_parameters()) + list(self.named_buffers()):
                if name in held:
                    continue
                target = target_dtype(name, slot.dtype, dtype, self._keep_in_fp32_modules)
                if target is not None and slot.dtype != target:
                    put(slot, cast(slot, target))
        self._note_dtype()

    def _note_dtype(self):
        # What Paddle's own layers look at when they make new tensors.
        dtype = self.dtype
        for layer in self.sublayers(include_self=True):
            set_layer_dtype(layer, dtype)

    def _forget_graphs(self) -> None:
        """For changes that a compiled graph would not see, see :class:`~ppsd3.compilation.Compilable`."""

    @takes_keywords_of(SWITCHES)
    def enable_gradient_checkpointing(self) -> None:
        """Recomputes each block's activations in the backward pass: less memory, about a third more time."""
        self._set_gradient_checkpointing(True)

    def disable_gradient_checkpointing(self) -> None:
        """Keeps activations for the backward pass again."""
        self._set_gradient_checkpointing(False)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any part recomputes its activations."""
        return any(getattr(layer, "gradient_checkpointing", False) for layer in self.sublayers(include_self=True))

    def _set_gradient_checkpointing(self, value: bool) -> None:
        self.gradient_checkpointing = value


def _check_memory(model_class: type[ModelMixin], arguments: Mapping[str, Any]) -> None:
    """Raises ConfigError if the weights of the model that ``arguments`` make need more memory than is free."""
    with to_be_filled():
        skeleton = model_class(**arguments)
    needed, free = 4 * sum(int(p.size) for p in skeleton.parameters()), available_memory()
    if needed > free:
        raise ConfigError(
            f"This {model_class.__name__} has {needed // 4:,} weights, which need {needed / 1e9:,.1f} GB; "
            f"{free / 1e9:,.1f} GB are free. Make the configuration smaller, or load it from files, which are mapped."
        )


_filling = threading.local()


@contextlib.contextmanager
def to_be_filled() -> Iterator[None]:
    """Builds networks without memory for parameters (``paddle.LazyGuard``) and without computing saved buffers.

    For networks that a checkpoint fills, or of which only names and shapes are needed. The guard is the process's, so
    that other threads build no networks meanwhile.
    """
    before, _filling.on = is_to_be_filled(), True
    try:
        with process_wide, LazyGuard():
            yield
    finally:
        _filling.on = before


def is_to_be_filled() -> bool:
    """Whether a network is being built within :func:`to_be_filled`, so that buffers need not be computed."""
    return getattr(_filling, "on", False)


def read_destination(given: Iterable[Any]) -> tuple[str | None, paddle.dtype | None]:
    """``(device, dtype)`` of what ``.to()`` is given: each of both at most once, None left out, in any order.

    Raises:
        InputError: a device that Paddle has not, something that is neither device nor dtype, or two of a kind.
    """
    device, dtype = None, None
    for value in given:
        if value is None:
            continue
        if device_name(value) is not None:
            device, twice = usable_device(value), device
        elif dtype_name(value) in NUMPY_DTYPES:
            dtype, twice = floating_dtype(value, "dtype"), dtype
        else:
            raise InputError(f"to() is given {value!r}; it takes a device ('cpu', 'gpu:0') and a dtype ('float16').")
        if twice is not None:
            raise InputError(f"to() is given {value!r} beside {twice}; it takes one device and one dtype.")
    return device, dtype
