"""What every network of ppsd3 can do: load, save, change dtype, recompute activations."""

import contextlib
import json
import os
import threading

import paddle
from paddle import nn

from .configuration_utils import ConfigMixin
from .layerwise_casting import cast_layers_, check_storage_dtype, held_weights, storage_dtype_of
from .ops import CastingLinear, QuantizedLinear
from .ops.adapted import checkpoint_tensors
from .quantization import (
    CONFIG_KEY,
    config_entries,
    is_quantized,
    prepare_for_loading,
    quantize_,
)
from .serialization import Checkpoint, SingleFile, load_weights
from .serialization.loading import target_dtype
from .serialization.sd3_configs import infer_config
from .serialization.tensors import cast, floating_dtype, is_floating, put
from .serialization.writers import write_checkpoint
from .utils.errors import InputError
from .utils.hub import resolve_checkpoint, resolve_file
from .utils.paddle_internals import LazyGuard, set_layer_dtype


class ModelMixin(nn.Layer, ConfigMixin):
    """Base of the networks. Parameter names are the diffusers (or transformers) checkpoint names.

    Attributes a class may set:
        weights_name (str): stem of its weights files, ``diffusion_pytorch_model`` or ``model``.
        extra_saved_config (dict): entries that the saved ``config.json`` has beside the arguments, e.g.
            ``{"architectures": ["T5EncoderModel"], "model_type": "t5"}`` for transformers.
        _keep_in_fp32_modules (tuple of str): modules that stay float32 in a float16 model.
        _quantizable_modules (tuple of str): modules whose linear layers :meth:`quantize` replaces.
        _weight_only_modules (tuple of str): more of them, whose activations are not rounded.
        _keys_to_ignore_on_load (tuple of str): regular expressions of checkpoint names that may be left unused.
        _tied_keys (dict): alias -> owner, two names of one tensor; a file may hold either or both.
        _components (tuple of str): what pipelines call such a network, for :meth:`from_single_file`.
    """

    config_name = "config.json"
    weights_name = "diffusion_pytorch_model"
    extra_saved_config = {}
    _keep_in_fp32_modules = ()
    _quantizable_modules = ()
    _weight_only_modules = ()
    _keys_to_ignore_on_load = ()
    _tied_keys = {}
    _components = ()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        subfolder=None,
        variant=None,
        paddle_dtype=None,
        storage_dtype=None,
        cache_dir=None,
        revision=None,
        local_files_only=None,
        token=None,
    ):
        """Loads a model, in evaluation mode, from a diffusers-format checkpoint in torch or Paddle layout.

        Every tensor must find its place. On the CPU, tensors that the file holds in the wanted dtype are mapped, not
        read: keep the file in place while the model lives.

        Args:
            pretrained_model_name_or_path (str or path): local directory, hub id ("org/name") or "shapes".
            subfolder (str, optional): component directory in it, e.g. "transformer".
            variant (str, optional): e.g. "fp16" for ``diffusion_pytorch_model.fp16.safetensors``. No fallback.
            paddle_dtype (paddle dtype or str, optional): dtype of the floating-point tensors. Default:
                ``paddle.get_default_dtype()``, float32 unless it was changed. int8 weights stay int8.
            storage_dtype (str, optional): "float16" or "bfloat16" holds the weights of linear layers in it and casts
                them when they are used, see :meth:`enable_layerwise_casting`.
            cache_dir, revision, local_files_only, token: passed to the hub, see
                :func:`ppsd3.utils.hub.resolve_checkpoint`.

        Raises:
            InputError: ``paddle_dtype`` is not a floating-point dtype, or weights cannot be held in ``storage_dtype``.
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
        )
        directory = os.path.join(directory, subfolder) if subfolder else directory
        config = cls.load_config(directory)
        checkpoint = Checkpoint.open(directory, cls.weights_name, variant)
        return cls.from_source(checkpoint, config, dtype, storage_dtype, os.path.join(directory, cls.config_name))

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path,
        config=None,
        subfolder=None,
        paddle_dtype=None,
        storage_dtype=None,
        cache_dir=None,
        revision=None,
        local_files_only=None,
        token=None,
    ):
        """Loads a model, in evaluation mode, from one safetensors file: with the names of Stability AI, ComfyUI or
        diffusers, with this network alone or others beside it, in 8-bit floats or wider ones.

        Args:
            pretrained_model_link_or_path (str or path): a file, or a link to one on the hub.
            config (str, path or dict, optional): the configuration, or a directory (or hub id) in diffusers format that
                has it. Default: what the file says, if ppsd3 wrote it, or else what its shapes say, which is enough for
                all published models.
            subfolder (str, optional): which network of the file and which folder of ``config``, if this class can be
                several: "text_encoder" or "text_encoder_2".
            paddle_dtype, storage_dtype: see :meth:`from_pretrained`.
            cache_dir, revision, local_files_only, token: for the hub.

        Raises:
            InputError: a dtype or ``subfolder`` cannot be used, or ``subfolder`` is needed.
            CheckpointNotFoundError, CheckpointFormatError, ConfigError, WeightMismatchError: as from_pretrained.
        """
        dtype = floating_dtype(paddle_dtype)
        hub = {"cache_dir": cache_dir, "revision": revision, "local_files_only": local_files_only, "token": token}
        file = SingleFile(resolve_file(pretrained_model_link_or_path, **hub))
        component = cls._component_in(file, subfolder)
        if config is not None and not isinstance(config, dict):
            directory = resolve_checkpoint(config, subfolder=component, **hub)
            folder = os.path.join(directory, component)
            config = cls.load_config(folder if os.path.isdir(folder) else directory)
        source = file.source(component)
        config = config or file.configs.get(component) or infer_config(component, source)
        return cls.from_source(source, config, dtype, storage_dtype)

    @classmethod
    def from_source(cls, source, config, dtype=None, storage_dtype=None, config_path="its configuration"):
        """The model that ``config`` (dict) describes, in evaluation mode, with the weights of ``source``.

        ``source`` and ``dtype`` are those of :meth:`load_weights`, ``storage_dtype`` that of :meth:`from_pretrained`;
        ``config_path`` is what errors call the configuration.
        """
        if storage_dtype is not None:
            check_storage_dtype(storage_dtype)
        config, source = dict(config), cls.with_own_names(source)
        quantization = config.pop(CONFIG_KEY, None)
        with to_be_filled():
            model = cls(**cls.extract_init_arguments(config, source=config_path))
        prepare_for_loading(model, quantization, source)
        if storage_dtype is not None:
            cast_layers_(model, storage_dtype, unfilled=True, compute_dtype=dtype)
        model.load_weights(source, dtype)
        model.eval()
        return model

    @classmethod
    def with_own_names(cls, source):
        """``source`` with the names that this class has, where files have several kinds."""
        return source

    @classmethod
    def _component_in(cls, file, subfolder):
        """Which component of a SingleFile this class is asked to load."""
        if subfolder is None:
            there = [name for name in cls._components if name in file.sources]
            if len(there) > 1:
                raise InputError(f"{file.path} has {' and '.join(there)}. Say which one: subfolder={there[0]!r}.")
            return (there or cls._components)[0]
        if subfolder not in cls._components:
            raise InputError(f"subfolder is {subfolder!r}; a {cls.__name__} is called {' or '.join(cls._components)}.")
        return subfolder

    def load_weights(self, source, dtype=None):
        """Fills this model from ``source`` (see :func:`ppsd3.serialization.load_weights`), strictly.

        Args:
            source: a :class:`~ppsd3.serialization.Checkpoint` or anything with its methods.
            dtype (paddle dtype, optional): what floating-point tensors become. Default: as the source has them.
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

    def save_pretrained(self, save_directory, variant=None, max_shard_size="10GB", safe_serialization=True):
        """Writes ``config.json`` and the weights, in the present dtype, as diffusers or transformers read them.

        Nothing appears under its final name before everything is written; files of an earlier save are replaced.

        Args:
            save_directory (str or path): made if missing.
            variant (str, optional): becomes part of the file names, e.g. "fp16".
            max_shard_size (int or str): most bytes per file, e.g. "10GB". Default "10GB".
            safe_serialization (bool): only True: pickles are not written.

        Raises:
            InputError, CheckpointError: see :func:`ppsd3.serialization.writers.write_checkpoint`.
        """
        if not safe_serialization:
            raise InputError("safe_serialization=False would write a pickle; ppsd3 writes safetensors only.")
        config = json.dumps(self.to_json_dict(), indent=2, sort_keys=True) + "\n"
        tensors = {name: t for name, t in checkpoint_tensors(self).items() if name not in self._tied_keys}
        write_checkpoint(
            os.fspath(save_directory), self.weights_name, tensors, variant, max_shard_size, {self.config_name: config}
        )

    def to_json_dict(self):
        """The configuration as it is saved, ``extra_saved_config`` included."""
        return {**super().to_json_dict(), **self.extra_saved_config, **config_entries(self)}

    def quantize(self, kind, skip=()):
        """Holds the weights of the layers that take the time in int8, in place, and returns the model.

        A quarter of the memory of float32 for these layers; on a CPU with VNNI their products are in int8 too, with
        activations rounded for each token anew (:mod:`ppsd3.ops.quantized`), elsewhere weights are multiplied out.
        Only for inference. ``save_pretrained`` and ``from_pretrained`` keep it so.

        Args:
            kind (str): "int8".
            skip (sequence of str): modules to leave as they are, e.g. ``("ff_context", "transformer_blocks.0")``.

        Raises:
            InputError: see :func:`ppsd3.quantization.quantize_`.
        """
        quantize_(self, kind, skip)
        return self

    def enable_layerwise_casting(self, storage_dtype="float16"):
        """Holds the weights of linear layers in 16 bits, in place, and returns the model.

        Half the memory of float32; each layer casts its weights when it is used, so results are those of the rounded
        weights in full arithmetic. A file in that dtype stays mapped: ``from_pretrained(..., storage_dtype=...)``.
        Weights cannot be trained then; an adapter on them can.

        Args:
            storage_dtype (str): "float16" or "bfloat16".

        Raises:
            InputError: see :func:`ppsd3.layerwise_casting.cast_layers_`.
        """
        cast_layers_(self, storage_dtype)
        return self

    @property
    def is_quantized(self):
        """Whether layers of this model are in int8."""
        return is_quantized(self)

    def train(self):
        """Training mode.

        Raises:
            InputError: the model is quantized.
        """
        if self.is_quantized:
            raise InputError(
                f"This {type(self).__name__} is in int8, and rounded weights cannot be trained. Train the model that "
                "it was made from, and quantize the result."
            )
        super().train()

    @property
    def dtype(self):
        """dtype of the first floating-point parameter (of those that don't have to stay float32, if there are any)."""
        kept = set(self._keep_in_fp32_modules)
        named = [(name, p.dtype) for name, p in self.named_parameters() if is_floating(p.dtype)]
        return next((dtype for name, dtype in named if not kept & set(name.split("."))), named[0][1] if named else None)

    @property
    def storage_dtype(self):
        """The 16-bit dtype that linear layers hold weights in, see :meth:`enable_layerwise_casting`, or None."""
        return storage_dtype_of(self)

    @property
    def device(self):
        """Place of the first parameter."""
        return next(iter(self.parameters())).place

    def num_parameters(self, only_trainable=False):
        """Number of scalars in the parameters, or in those with ``stop_gradient=False``.

        The first counts weights too that are held in int8 or 16 bits, which are no parameters.
        """
        number = sum(int(p.size) for p in self.parameters() if not (only_trainable and p.stop_gradient))
        held = (layer.weight for layer in self.sublayers() if isinstance(layer, (CastingLinear, QuantizedLinear)))
        return number if only_trainable else number + sum(int(weight.size) for weight in held)

    def to(self, device=None, dtype=None, blocking=None):
        """Moves and casts in place, and returns the model: ``to("gpu")``, ``to(dtype="float16")``.

        ``_keep_in_fp32_modules`` stay float32 in a float16 model; integers and booleans keep their dtype.
        """
        if dtype is None and _is_dtype(device):
            device, dtype = None, device
        if dtype is not None:
            self._cast(floating_dtype(dtype))
        if device is not None:
            super().to(device=device, blocking=blocking)
        return self

    def _cast(self, dtype):
        with paddle.no_grad():
            held = held_weights(self)
            for name, slot in list(self.named_parameters()) + list(self.named_buffers()):
                if name in held:
                    continue
                target = target_dtype(name, slot.dtype, dtype, self._keep_in_fp32_modules)
                if slot.dtype != target:
                    put(slot, cast(slot, target))
        self._note_dtype()

    def _note_dtype(self):
        # What Paddle's own layers look at when they make new tensors.
        dtype = self.dtype
        for layer in self.sublayers(include_self=True):
            set_layer_dtype(layer, dtype)

    def enable_gradient_checkpointing(self):
        """Recompute each block's activations in the backward pass: less memory, about a third more time."""
        self._set_gradient_checkpointing(True)

    def disable_gradient_checkpointing(self):
        """Keep activations again."""
        self._set_gradient_checkpointing(False)

    @property
    def is_gradient_checkpointing(self):
        """Whether any part recomputes its activations."""
        return any(getattr(layer, "gradient_checkpointing", False) for layer in self.sublayers(include_self=True))

    def _set_gradient_checkpointing(self, value):
        self.gradient_checkpointing = value


_filling = threading.local()


@contextlib.contextmanager
def to_be_filled():
    """Networks made inside have no values: parameters no memory (``paddle.LazyGuard``), saved buffers none worth it.

    Every tensor gets its memory from a checkpoint, or the network is only asked for names and shapes.
    """
    before, _filling.on = is_to_be_filled(), True
    try:
        with LazyGuard():
            yield
    finally:
        _filling.on = before


def is_to_be_filled():
    """Whether a network that is being made need not compute what a checkpoint brings."""
    return getattr(_filling, "on", False)


def _is_dtype(value):
    return isinstance(value, paddle.dtype) or (isinstance(value, str) and is_floating(value))
