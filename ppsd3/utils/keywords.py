"""Keywords of diffusers, transformers, ppdiffusers and PaddleNLP that calls take beside their own arguments.

Code that was written for these libraries passes keywords that are not needed here. A call decorated with
:func:`takes_keywords_of` another library's table treats a keyword that it does not declare itself by the first of these
rules that fits:

1. It is another name of an argument of the call (``ALIASES``): ``torch_dtype`` is ``paddle_dtype``.
2. It has a line in the table: values that change nothing are accepted, others are refused with what to do instead.
3. The call takes further keywords (components of a pipeline, entries of a configuration): it checks them itself.
4. It is unknown: an :class:`~ppsd3.utils.errors.UnknownArgumentError` with the nearest spelling.
"""

from __future__ import annotations

import functools
import inspect
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, NamedTuple, TypeVar, cast

from .checking import bind, checks_arguments
from .device import device_name, is_present_device
from .elsewhere import check_argument_names
from .errors import InputError

Function = TypeVar("Function", bound=Callable[..., Any])

# Of calls that may download.
HUB_KEYWORDS = ("cache_dir", "revision", "local_files_only", "token", "force_download")
# Which of the public hubs is meant by "org/name".
HUB_VARIABLE = "PPSD3_HUB"

# Another name -> the argument that it means: the first of these that the call has.
ALIASES = {
    "torch_dtype": ("paddle_dtype", "dtype"),
    "dtype": ("paddle_dtype",),
    "paddle_dtype": ("dtype",),
    "use_auth_token": ("hf_token", "token"),
    "hf_token": ("token",),
    "pretrained_model_link_or_path_or_dict": ("pretrained_model_link_or_path",),
    "directory": ("pretrained_model_name_or_path", "save_directory"),
}


class Keyword(NamedTuple):
    """A line of a table.

    Attributes:
        harmless: whether a value changes nothing.
        remedy: what to do instead where it would; ``{device}`` is the device that the value names.
    """

    harmless: Callable[[Any], bool]
    remedy: str


def _only(*values):
    """None and these; compared by type too, so that 0 is not False and an array is nothing of the kind."""
    return lambda given: given is None or any(type(given) is type(value) and given == value for value in values)


def _names_present_device(value):
    if isinstance(value, dict) and list(value) == [""]:  # accelerate's way of writing "all of it there"
        value = value[""]
    return value is None or is_present_device(value)


def _asks_for_no_other_hub(value):
    return not value or os.environ.get(HUB_VARIABLE, "huggingface") == "huggingface"


_ANY = Keyword(lambda value: True, "")
_OFF = _only(False)
_EMPTY = _only("", {}, [], ())

_QUANTIZE = "Load it without, and call quantize('int8') on the pipeline or the network; storage_dtype= holds 16 bits."
_DEVICE = (
    "Networks are read to Paddle's present device: call paddle.set_device({device!r}) before, or .to({device!r}) "
    "afterwards."
)
_PLACEMENT = (
    " One device holds a pipeline; to spread it over memory and time, use enable_model_cpu_offload() or "
    "load_components='on_demand'."
)
_SAFETENSORS = "ppsd3 opens safetensors only; `ppsd3 convert` and diffusers' save_pretrained() write them."
_PROXY = "The clients of the hubs obey the environment variables HTTPS_PROXY and HTTP_PROXY; set these."
_FORMATS = "Pass a directory in diffusers format, or a safetensors file to from_single_file()."
_TOKENIZER = "The text encoders were trained with tokenizers that do not do that; leave it out."
_STRICT = "Every tensor has to fit here. Pass the configuration that belongs to the weights."

# Of calls that make something out of files: from_pretrained, from_single_file, load_..., from_config, from_pipe.
LOADING: dict[str, Keyword] = {
    # How it is read: what is read is the same.
    "low_cpu_mem_usage": _ANY,  # memory holds each tensor once in any case
    "offload_state_dict": _ANY,
    "offload_folder": _ANY,  # which only a device_map fills
    "weights_only": _ANY,  # nothing is unpickled
    "trust_remote_code": _ANY,  # no code is read from a checkpoint
    "resume_download": _ANY,  # downloads always go on where they stopped
    "local_dir_use_symlinks": _ANY,
    "user_agent": _ANY,
    "use_fast": _ANY,  # tokenizers and image processors have one implementation
    "from_slow": _ANY,
    "legacy": _ANY,  # T5's ids are those of transformers 5, which ignores it
    "attn_implementation": _ANY,  # kernels are chosen by ppsd3.ops
    "load_connected_pipeline": _ANY,  # Stable Diffusion 3 has none
    "variant": _ANY,  # what has no weights has no variants of them
    "paddle_dtype": _ANY,  # and no dtype: tokenizers, image processors, schedulers; an adapter has the network's
    "torch_dtype": _ANY,
    "dtype": _ANY,
    "use_auth_token": _ANY,
    "subfolder": Keyword(_only("", "."), "Pass the path with the folder in it; on a hub, a pipeline is at the root."),
    "use_safetensors": Keyword(_only(True), _SAFETENSORS),
    "disable_mmap": Keyword(_OFF, "Files are mapped into memory. Copy them to a local disk if theirs is slow."),
    "use_flashpack": Keyword(_OFF, _FORMATS),
    "flashpack_kwargs": Keyword(_EMPTY, _FORMATS),
    "dduf_file": Keyword(_only(), _FORMATS),
    "use_onnx": Keyword(_OFF, _FORMATS),
    "from_flax": Keyword(_OFF, _FORMATS),
    "from_tf": Keyword(_OFF, _FORMATS),
    "padding_side": Keyword(_only("right"), _TOKENIZER),
    "truncation_side": Keyword(_only("right"), _TOKENIZER),
    "add_prefix_space": Keyword(_OFF, _TOKENIZER),
    "clean_up_tokenization_spaces": Keyword(_OFF, _TOKENIZER),
    "state_dict": Keyword(_only(), "Make the network with from_config() and fill it with set_state_dict()."),
    "ignore_mismatched_sizes": Keyword(_OFF, _STRICT),
    "strict": Keyword(_only(True), _STRICT),
    "output_loading_info": Keyword(_OFF, "A network's from_pretrained() gives it; whatever does not fit is an error."),
    "return_unused_kwargs": Keyword(_OFF, "No keyword is left unused here: an unknown one is an error."),
    # Where it comes from.
    "from_diffusers": _ANY,  # layouts are told apart by names and shapes
    "convert_from_torch": _ANY,
    "from_hf_hub": Keyword(
        _asks_for_no_other_hub, f"{HUB_VARIABLE} names another hub; write 'huggingface:org/name' for this one."
    ),
    "from_aistudio": Keyword(
        _OFF,
        "AI Studio's client keeps no cache by revision. Take the model from ModelScope ('modelscope:org/name') or "
        "Hugging Face ('org/name'), or download it with `aistudio download` and pass its directory.",
    ),
    "mirror": Keyword(_only(), "Set the environment variable HF_ENDPOINT to the mirror's address."),
    "proxies": Keyword(_EMPTY, _PROXY),
    "local_dir": Keyword(_only(), "Pass cache_dir, or download the files and pass their directory."),
    "custom_revision": Keyword(_only(), "Pass revision."),
    "config_revision": Keyword(_only(), "Pass revision; it is that of config= too."),
    "return_commit_hash": Keyword(_OFF, "The path that ppsd3.utils.hub.resolve_checkpoint() returns has it."),
    "return_cached_folder": Keyword(_OFF, "ppsd3.utils.hub.resolve_checkpoint() returns the directory."),
    # What else would be made of it.
    "custom_pipeline": Keyword(_only(), "Import the pipeline's class and call its from_pretrained()."),
    "safety_checker": Keyword(_OFF, "Stable Diffusion 3 has no safety checker; check the images of the result."),
    "requires_safety_checker": Keyword(_OFF, "Stable Diffusion 3 has no safety checker; leave it out."),
    "load_safety_checker": Keyword(_OFF, "Stable Diffusion 3 has no safety checker; leave it out."),
    "quantization_config": Keyword(_only(), _QUANTIZE),
    "load_in_8bit": Keyword(_OFF, _QUANTIZE),
    "load_in_4bit": Keyword(_OFF, _QUANTIZE),
    "use_keep_in_fp32_modules": Keyword(
        _only(True), "Leave it out: T5 overflows in float16 without them; bfloat16 does not."
    ),
    "original_config": Keyword(_only(), "Pass config=, a directory in diffusers format; shapes say the rest."),
    "original_config_file": Keyword(_only(), "Pass config=, a directory in diffusers format; shapes say the rest."),
    "scaling_factor": Keyword(_only(), "Pass vae=, made by AutoencoderKL.from_single_file(..., scaling_factor=...)."),
    "extract_ema": Keyword(_OFF, "Files of Stable Diffusion 3 have one set of weights; leave it out."),
    # Where it will be.
    "map_location": Keyword(_names_present_device, _DEVICE),
    "device": Keyword(_names_present_device, _DEVICE),
    "device_map": Keyword(_names_present_device, _DEVICE + _PLACEMENT),
    "max_memory": Keyword(_EMPTY, _PLACEMENT.strip()),
    "tensor_parallel_degree": Keyword(_only(1, -1), "One device holds a network. Draw with a process for each device."),
    "tensor_parallel_rank": Keyword(_only(0, -1), "One device holds a network. Draw with a process for each device."),
    "tp_plan": Keyword(_only(), "One device holds a network. Draw with a process for each device."),
    "parallel_config": Keyword(_only(), "One device holds a network. Draw with a process for each device."),
    "provider": Keyword(_only(), "That is for ONNX. Paddle's device is set by paddle.set_device()."),
    "provider_options": Keyword(_EMPTY, "That is for ONNX. Paddle's device is set by paddle.set_device()."),
    "sess_options": Keyword(_only(), "That is for ONNX. Paddle's device is set by paddle.set_device()."),
    "runtime_options": Keyword(_only(), "That is for FastDeploy. Paddle's device is set by paddle.set_device()."),
}

# Of save_pretrained.
SAVING: dict[str, Keyword] = {
    "safe_serialization": Keyword(_only(True), "That would write a pickle; ppsd3 writes safetensors only."),
    "push_to_hub": Keyword(
        _OFF, "Save it, and call huggingface_hub.upload_folder(repo_id='org/name', folder_path=...) for the directory."
    ),
    "to_diffusers": Keyword(_only(True), "Pass layout='ppdiffusers' to a pipeline or a network."),
    # What only push_to_hub would read
    "repo_id": _ANY,
    "commit_message": _ANY,
    "private": _ANY,
    "create_pr": _ANY,
    "token": _ANY,
    "use_auth_token": _ANY,
    "is_main_process": Keyword(_only(True), "Call save_pretrained() in the main process alone."),
    "save_function": Keyword(_only(), "ppsd3 writes safetensors itself; leave it out."),
    "use_flashpack": Keyword(_OFF, "ppsd3 writes safetensors only."),
    "merge_tensor_parallel": _ANY,  # nothing is split
    "max_shard_size": _ANY,  # of what has no weights
    "variant": _ANY,
}

# Of .to().
MOVING: dict[str, Keyword] = {
    "silence_dtype_warnings": _ANY,
    "non_blocking": _ANY,  # a tensor that has not arrived yet is waited for when it is used
    "blocking": _ANY,
    "memory_format": _ANY,  # how numbers lie in memory; ppsd3.ops chooses it
    "copy": Keyword(_OFF, "Networks are moved in place; use copy.deepcopy() first."),
}


# Of methods that turn something on or off.
SWITCHES: dict[str, Keyword] = {
    "gradient_checkpointing_func": Keyword(_only(), "Blocks are recomputed by Paddle's own function; leave it out."),
    "use_tiling": Keyword(_only(True), "Call disable_tiling()."),
    "reset_to_overwritten_params": Keyword(_OFF, "No adapter of Stable Diffusion 3 replaces parameters; leave it out."),
}


def takes_keywords_of(
    table: Mapping[str, Keyword], also: Iterable[str] | Callable[[Any], Iterable[str] | None] | None = None
) -> Callable[[Function], Function]:
    """Decorator of a method (under ``@classmethod``, where it is one) that may be called with keywords of ``table``.

    Args:
        table: ``LOADING``, ``SAVING`` or ``MOVING``.
        also: the keywords that the method's ``**options`` take, or a function of the class (or object) that gives them.
            None: any, which the method checks itself.
    """

    def decorate(function: Function) -> Function:
        checked, signature = checks_arguments(function), inspect.signature(function)
        parameters = list(signature.parameters.values())[1:]
        declared = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]

        @functools.wraps(function)
        def call(owner: Any, *args: Any, **kwargs: Any) -> Any:
            name = f"{(owner if isinstance(owner, type) else type(owner)).__name__}.{function.__name__}"
            more = also(owner) if callable(also) else also
            own = [*declared, *(more or ())]
            kwargs = own_keywords(kwargs, own, table, name, is_open=more is None)
            bind(signature, (owner, *args), kwargs, name)
            return checked(owner, *args, **kwargs)

        return cast(Function, call)

    return decorate


def own_keywords(
    given: Mapping[str, Any], own: Sequence[str], table: Mapping[str, Keyword], call: str, is_open: bool = False
) -> dict[str, Any]:
    """``given`` under the names in ``own``, without what changes nothing; see the rules of this module.

    Args:
        call: its name, for errors.
        is_open: whether the call takes further keywords, which it checks itself.

    Raises:
        InputError: a value that would change something, or one argument under two names.
        UnknownArgumentError: an unknown keyword.
    """
    kept = {name: value for name, value in given.items() if name in own}
    for name, value in given.items():
        if name in own:
            continue
        meant = next((target for target in ALIASES.get(name, ()) if target in own), None)
        if meant is not None:
            if meant in kept and _text(kept[meant]) != _text(value):
                raise InputError(f"{call} has `{name}` and `{meant}`, which are one argument. Pass one of the two.")
            kept[meant] = value
        elif name in table:
            check_harmless(name, value, table, call)
        elif is_open:
            kept[name] = value
        else:
            check_argument_names(call, [name], own)
    return kept


def check_harmless(name: str, value: Any, table: Mapping[str, Keyword], call: str) -> None:
    """Raises InputError, with the remedy, if the keyword ``name`` would change something with this value."""
    line = table[name]
    if not line.harmless(value):
        remedy = line.remedy.format(device=device_name(value) or "gpu")
        raise InputError(f"{call} cannot take {name}={reprlib.repr(value)}. {remedy}")


def _text(value):
    """A dtype's name whichever library's it is; else ``str``."""
    return str(value).rpartition(".")[2]
