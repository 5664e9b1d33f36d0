"""Options that several commands share: which model, in which form, with which adapters."""

import argparse
import os
import sys
from typing import Any

from ..utils.device import usable_device
from ..utils.errors import InputError
from ..utils.samplers import explain_option

DEFAULT_MODEL = "shapes"
DTYPES = ("float32", "bfloat16", "float16")

# Name -> class of ppsd3, and what its configuration says beside the model's own.
SCHEDULERS = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "lcm": ("FlowMatchLCMScheduler", {}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "dpm-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


CACHES = {"taylor": "TaylorCache", "first-block": "FirstBlockCache", "easy": "EasyCache"}  # name -> class of ppsd3


def add_model_options(parser):
    """Which model, in which form: what :func:`load_pipeline` reads."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="directory, hub id, .safetensors file or the bundled model (default: %(default)s)",
    )
    add_loading_options(parser)
    parser.add_argument(
        "--quantize", choices=("int8",), help="int8 transformer and T5: less memory, and on CPUs with VNNI less time"
    )
    parser.add_argument("--cache", choices=tuple(CACHES), help="evaluate the transformer at fewer steps; see the guide")
    parser.add_argument(
        "--on-demand",
        action="store_true",
        help="read each network when it is used, with weights in 16 bits, and forget it afterwards: least memory",
    )
    parser.add_argument(
        "--prompt-weighting", action="store_true", help="read (word:1.3), [word] and BREAK, and prompts of any length"
    )


def add_loading_options(parser):
    """What is loaded of the model that another option names, and on top of it."""
    parser.add_argument("--config", help="for a .safetensors file: directory or hub id with tokenizers and scheduler")
    parser.add_argument("--variant", help="which weight files, e.g. fp16")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the networks (default: %(default)s)")
    parser.add_argument(
        "--lora",
        metavar="FILE[:SCALE]",
        action="append",
        help="a LoRA, LoHa or LoKr: file, directory or hub id, and its weight (default: 1); several are added",
    )
    parser.add_argument(
        "--textual-inversion",
        metavar="FILE[:WORD]",
        action="append",
        help="a learnt word for the prompt: file, directory or hub id, and the word (default: what the file says, or "
        "its name); several are added",
    )
    parser.add_argument("--scheduler", type=_sampler, choices=tuple(SCHEDULERS), help="the sampler (default: its own)")
    parser.add_argument("--device", help="cpu, gpu or gpu:N (default: what Paddle takes)")
    parser.add_argument("--without-t5", action="store_true", help="do not load T5, the largest text encoder")


def load_pipeline(arguments: Any, quiet: bool, pipeline_class: Any = None, **components: Any) -> Any:
    """The pipeline (by default for text to image) that the model options ask for, with these ``components`` in place of
    the model's; ``quiet`` hides its progress bar."""
    _choose_device(arguments.device, arguments.dtype)
    if arguments.without_t5:
        components.update({"text_encoder_3": None, "tokenizer_3": None})
    memory = {"load_components": "on_demand", "storage_dtype": "float16"} if arguments.on_demand else {}
    if pipeline_class is None:
        from ..pipelines import StableDiffusion3Pipeline as pipeline_class
    if os.path.isfile(os.path.expanduser(arguments.model)) or str(arguments.model).endswith(".safetensors"):
        if arguments.variant is not None:
            raise InputError("--variant chooses among the files of a directory; --model is one file. Leave it out.")
        pipe = pipeline_class.from_single_file(
            arguments.model, config=arguments.config, paddle_dtype=arguments.dtype, **memory, **components
        )
    elif arguments.config is not None:
        raise InputError("--config goes with a .safetensors file; a directory has its own. Leave it out.")
    else:
        pipe = pipeline_class.from_pretrained(
            arguments.model, paddle_dtype=arguments.dtype, variant=arguments.variant, **memory, **components
        )
    if arguments.cache is not None:
        from ..pipelines.stable_diffusion_3 import step_caching

        pipe.enable_cache(getattr(step_caching, CACHES[arguments.cache])())
    load_loras(pipe, arguments.lora or ())
    for text in arguments.textual_inversion or ():
        path, word = split_word(text)
        pipe.load_textual_inversion(path, token=word)
    if arguments.scheduler is not None:
        pipe.scheduler = make_scheduler(arguments.scheduler, pipe.scheduler)
    if arguments.prompt_weighting:
        from ..pipelines.stable_diffusion_3.prompt_reading import WeightedPrompts

        pipe.prompt_reader = WeightedPrompts()
    if arguments.quantize is not None:
        pipe.quantize(arguments.quantize)
    pipe.set_progress_bar_config(disable=quiet, file=sys.stderr)
    return pipe


def load_loras(pipe, loras):
    """Loads every ``FILE[:SCALE]`` of ``loras`` into ``pipe``, with its weight.

    Raises:
        InputError, CheckpointError: see ``load_lora_weights``.
    """
    weights = {}
    for index, text in enumerate(loras):
        path, weight = split_scale(text)
        name = f"lora_{index}"
        pipe.load_lora_weights(path, adapter_name=name)
        weights[name] = weight
    if weights:
        pipe.set_adapters(list(weights), list(weights.values()))


def load_ip_adapter(pipe, text, image_encoder=None):
    """Loads the IP-adapter ``FILE[:SCALE]`` into ``pipe``, at the scale 0.5 where none is given; none for None.

    ``image_encoder`` is a directory or hub id; if it is None the adapter's directory has one.

    Raises:
        InputError, CheckpointError: see ``load_ip_adapter`` of the pipelines.
    """
    if text is not None:
        path, scale = split_scale(text, default=0.5)
        if image_encoder is not None:
            pipe.load_image_encoder(image_encoder)
        pipe.load_ip_adapter(path)
        pipe.set_ip_adapter_scale(scale)


def _sampler(name):
    """``name``; one that other programs have is answered with the nearest of ``SCHEDULERS``."""
    said = explain_option(name, SCHEDULERS)
    if said is not None:
        raise argparse.ArgumentTypeError(said)
    return name


def split_scale(text, default=1.0):
    """``("file", 0.5)`` of ``"file:0.5"``; ``default`` is the scale where none is given (a path may have colons)."""
    path, colon, scale = text.rpartition(":")
    try:
        return (path, float(scale)) if colon and path else (text, default)
    except ValueError:
        return text, default


def split_word(text):
    """``("file", "<cat>")`` of ``"file:<cat>"``; the word is None where none is given (a path may have colons)."""
    path, _, word = text.rpartition(":")
    if os.path.exists(text) or not path or not word or "/" in word or "\\" in word:
        return text, None
    return path, word


def make_scheduler(name, model_scheduler):
    """The sampler that ``SCHEDULERS`` calls ``name``, with the shift of the model's own."""
    from .. import schedulers

    class_name, settings = SCHEDULERS[name]
    return getattr(schedulers, class_name).from_config(model_scheduler.config, **settings)


def _choose_device(device, dtype):
    import paddle

    if device is not None:
        paddle.set_device(usable_device(device))
    if dtype != "float32" and paddle.get_device() == "cpu":
        raise InputError(f"--dtype {dtype} needs a GPU: Paddle computes in float32 only on the CPU. Leave it out.")
