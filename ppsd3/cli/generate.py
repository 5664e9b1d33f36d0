"""Draw pictures from a prompt and save them as PNG files that hold the settings."""

from .. import __version__
from ..utils.errors import InputError
from .options import add_call_options, add_model_options, call_arguments, load_pipeline
from .png import output_files, save_png


def add_arguments(parser):
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw")
    add_model_options(parser)
    parser.add_argument(
        "--seed",
        type=int,
        help="the same seed gives the same picture, here and in diffusers; picture i of several has seed + i "
        "(default: a random one)",
    )
    parser.add_argument("--output", metavar="FILE", help="a .png file or a directory (default: named after the prompt)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no file names")
    add_call_options(parser)


def run(arguments):
    seeds = _seeds(arguments.seed, arguments.num_images_per_prompt)
    files = output_files(arguments.output, arguments.prompt, seeds)
    pipe = load_pipeline(arguments, arguments.quiet)
    call = call_arguments(arguments)
    images = pipe(arguments.prompt, generator=_generators(seeds), **call).images
    for image, file, seed in zip(images, files, seeds):
        save_png(image, file, settings_of(arguments, call, seed, image))
        if not arguments.quiet:
            print(file)


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
        "quantize": arguments.quantize,
        "without_t5": arguments.without_t5 or None,
        "ppsd3_version": __version__,
    }
    if not arguments.skip_guidance_layers:  # then its weight and its steps say nothing
        settings = {name: value for name, value in settings.items() if not name.startswith("skip_layer_guidance")}
    return {name: value for name, value in settings.items() if value is not None}
