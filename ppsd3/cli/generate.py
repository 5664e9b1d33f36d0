"""Draw pictures from a prompt and save them as PNG files that hold the settings."""

import inspect
import sys

from .. import __version__
from ..utils.errors import InputError
from .png import output_files, save_png

DEFAULT_MODEL = "shapes"

# Option -> (argument of the pipeline's call, type, help). The defaults are the call's own.
CALL_OPTIONS = {
    "--prompt-2": ("prompt_2", str, "another prompt for CLIP-G"),
    "--prompt-3": ("prompt_3", str, "another prompt for T5"),
    "--negative-prompt": ("negative_prompt", str, "what to stay away from"),
    "--negative-prompt-2": ("negative_prompt_2", str, "another negative prompt for CLIP-G"),
    "--negative-prompt-3": ("negative_prompt_3", str, "another negative prompt for T5"),
    "--steps": ("num_inference_steps", int, "denoising steps"),
    "--guidance-scale": ("guidance_scale", float, "how closely to follow the prompt; 1 is no guidance, twice as fast"),
    "--height": ("height", int, "pixels; the model's own size if left out"),
    "--width": ("width", int, "pixels; the model's own size if left out"),
    "--num-images": ("num_images_per_prompt", int, "how many pictures"),
    "--max-sequence-length": ("max_sequence_length", int, "tokens that T5 reads, up to 512"),
    "--clip-skip": ("clip_skip", int, "last layers of CLIP to leave out"),
    "--skip-guidance-layers": ("skip_guidance_layers", int, "layers for skip-layer guidance, e.g. 7 8 9"),
    "--skip-layer-guidance-scale": ("skip_layer_guidance_scale", float, "its weight"),
    "--skip-layer-guidance-start": ("skip_layer_guidance_start", float, "part of the steps at which it starts"),
    "--skip-layer-guidance-stop": ("skip_layer_guidance_stop", float, "part of the steps at which it stops"),
}


def add_arguments(parser):
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="directory, hub id or the bundled model (default: %(default)s)"
    )
    parser.add_argument("--variant", help="which weight files, e.g. fp16")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="of the networks (default: %(default)s)")
    parser.add_argument("--device", help="cpu, gpu or gpu:N (default: what Paddle takes)")
    parser.add_argument("--without-t5", action="store_true", help="do not load T5, the largest text encoder")
    parser.add_argument(
        "--seed",
        type=int,
        help="the same seed gives the same picture, here and in diffusers; picture i of several has seed + i "
        "(default: a random one)",
    )
    parser.add_argument("--output", metavar="FILE", help="a .png file or a directory (default: named after the prompt)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no file names")
    defaults = _call_defaults()
    for option, (name, kind, text) in CALL_OPTIONS.items():
        default = defaults[name]
        shown = "" if default is None else f" (default: {default})"
        settings = {"dest": name, "type": kind, "default": default, "help": text + shown}
        if name == "skip_guidance_layers":
            settings["nargs"] = "+"
        parser.add_argument(option, metavar=option.split("-")[-1].upper(), **settings)


def _call_defaults():
    from ..pipelines import StableDiffusion3Pipeline

    parameters = inspect.signature(StableDiffusion3Pipeline.__call__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def run(arguments):
    seeds = _seeds(arguments.seed, arguments.num_images_per_prompt)
    files = output_files(arguments.output, arguments.prompt, seeds)
    pipe = load_pipeline(arguments)
    call = {name: getattr(arguments, name) for name, _, _ in CALL_OPTIONS.values()}
    images = pipe(arguments.prompt, generator=_generators(seeds), **call).images
    for image, file, seed in zip(images, files, seeds):
        save_png(image, file, settings_of(arguments, call, seed, image))
        if not arguments.quiet:
            print(file)


def load_pipeline(arguments):
    """The pipeline that ``--model``, ``--variant``, ``--dtype``, ``--device`` and ``--without-t5`` ask for."""
    from ..pipelines import StableDiffusion3Pipeline

    _choose_device(arguments.device, arguments.dtype)
    absent = {"text_encoder_3": None, "tokenizer_3": None} if arguments.without_t5 else {}
    pipe = StableDiffusion3Pipeline.from_pretrained(
        arguments.model, paddle_dtype=arguments.dtype, variant=arguments.variant, **absent
    )
    pipe.set_progress_bar_config(disable=arguments.quiet, file=sys.stderr)
    return pipe


def _choose_device(device, dtype):
    import paddle

    if device is not None:
        try:
            paddle.set_device(device)
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(f"--device {device}: {error} Use cpu, or install paddlepaddle-gpu for gpu.") from error
    if dtype != "float32" and paddle.get_device() == "cpu":
        raise InputError(f"--dtype {dtype} needs a GPU: Paddle computes in float32 only on the CPU. Leave it out.")


def _seeds(seed, count):
    import random

    if count < 1:
        raise InputError(f"--num-images is {count}; it has to be 1 or more.")
    first = random.randrange(2**32) if seed is None else seed
    return [first + i for i in range(count)]


def _generators(seeds):
    from ..utils.random import TorchGenerator

    return [TorchGenerator(seed) for seed in seeds]


def settings_of(arguments, call, seed, image):
    """What has to be known to draw ``image`` again: plain JSON values, without what was left at None."""
    settings = {
        "prompt": arguments.prompt,
        **call,
        "num_images_per_prompt": None,  # this file holds one, and its seed draws it alone
        "seed": seed,
        "width": image.width,
        "height": image.height,
        "model": arguments.model,
        "variant": arguments.variant,
        "dtype": arguments.dtype,
        "without_t5": arguments.without_t5 or None,
        "ppsd3_version": __version__,
    }
    if not arguments.skip_guidance_layers:  # then its weight and its steps say nothing
        settings = {name: value for name, value in settings.items() if not name.startswith("skip_layer_guidance")}
    return {name: value for name, value in settings.items() if value is not None}
