"""What the commands that draw have in common: prompts, seeds, files, and the settings that go into each PNG."""

import argparse
import os

from .. import __version__
from ..utils.errors import InputError
from .options import add_call_options, add_model_options, call_arguments, load_ip_adapter, load_pipeline
from .png import output_files, read_settings, save_png


def add_drawing_arguments(parser, pipeline_class):
    """The arguments of every such command; defaults are those of the call of ``pipeline_class``."""
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="what to draw")
    parser.add_argument("--prompt-file", metavar="FILE", help="a prompt on each line, drawn one after the other")
    parser.add_argument(
        "--from-png", metavar="FILE", help="take every setting from a picture that ppsd3 drew; options given win"
    )
    add_model_options(parser)
    parser.add_argument(
        "--ip-adapter",
        metavar="FILE[:SCALE]",
        help="an IP-adapter, for pictures as prompts: file, directory or hub id, and its weight (default: 0.5)",
    )
    parser.add_argument("--ip-adapter-image", metavar="FILE", help="the picture that the IP-adapter reads")
    parser.add_argument(
        "--image-encoder",
        metavar="DIR",
        help="directory or hub id of the encoder that it is read by (default: image_encoder/ beside the IP-adapter)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="the same seed gives the same picture, here and in diffusers; picture i of several has seed + i "
        "(default: a random one)",
    )
    parser.add_argument("--output", metavar="FILE", help="a .png file or a directory (default: named after the prompt)")
    parser.add_argument("--preview", metavar="DIR", help="save a small picture of each step into this directory")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no file names")
    add_call_options(parser, pipeline_class=pipeline_class)


def take_settings(parser, rest, command):
    """Makes the settings in the file of ``--from-png``, if the arguments ``rest`` name one, the parser's defaults.

    Raises:
        InputError: the file is no PNG of ppsd3's, or another command drew it.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--from-png")
    path = first.parse_known_args(rest)[0].from_png
    if path is None:
        return
    settings = read_settings(path)
    drawn_by = settings.get("command", "generate")
    if drawn_by != command:
        raise InputError(f"{path} was drawn by `ppsd3 {drawn_by}`. Use that command with --from-png.")
    known = {action.dest for action in parser._actions}
    parser.set_defaults(**{name: value for name, value in settings.items() if name in known})


def draw(arguments, pipeline_class, command="generate", own=None, files=None, load=load_pipeline):
    """Draws what ``arguments`` ask for and saves it.

    Args:
        pipeline_class (type)
        command (str): that can draw it again.
        own (dict): arguments of the call that are the task's, as the call takes them.
        files (dict): the same as the PNG should say it: names of files, numbers.
        load (callable): (arguments, quiet, pipeline_class) -> pipeline.
    """
    prompts = _prompts(arguments)
    seeds = _seeds(arguments.seed, arguments.num_images_per_prompt)
    targets = output_files(arguments.output, prompts, seeds)
    picture = _picture_prompt(arguments)
    pipe = load(arguments, arguments.quiet, pipeline_class)
    load_ip_adapter(pipe, arguments.ip_adapter, arguments.image_encoder)
    call = call_arguments(arguments, pipeline_class=pipeline_class)
    for number, prompt in enumerate(prompts, 1):
        watching = _previews(pipe, arguments.preview, f"{number}-" if len(prompts) > 1 else "")
        images = pipe(prompt, generator=_generators(seeds), **call, **picture, **watching, **(own or {})).images
        for image, seed in zip(images, seeds):
            file = targets.pop(0)
            settings = {"prompt": prompt, **_settings(arguments, call, seed, image), **(files or {})}
            save_png(image, file, settings if command == "generate" else {**settings, "command": command})
            if not arguments.quiet:
                print(file)


def open_picture(path, option):
    """The picture in a file, in RGB.

    Raises:
        InputError: there is none, or it is no picture; names ``option``.
    """
    from PIL import Image, UnidentifiedImageError

    if path is None:
        raise InputError(f"{option} is missing. Name a picture.")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"{option} {path}: there is no such file.") from error
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{option} {path} cannot be read as a picture ({error}). Name a PNG or JPEG file.") from error


def size_like(arguments, image, multiple=16):
    """Sets height and width that were left out to those of ``image``, down to a multiple of 16 pixels."""
    for name, size in (("height", image.height), ("width", image.width)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, max(multiple, size - size % multiple))


def _prompts(arguments):
    if arguments.prompt_file is None:
        if arguments.prompt is None:
            raise InputError("There is no PROMPT. Give one, or --prompt-file with one on each line.")
        return [arguments.prompt]
    if arguments.prompt is not None and arguments.from_png is None:
        raise InputError("Both PROMPT and --prompt-file are given. Give one of the two.")
    try:
        with open(arguments.prompt_file, encoding="utf-8") as file:
            prompts = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompt-file {arguments.prompt_file} cannot be read: {error}") from error
    if not prompts:
        raise InputError(f"--prompt-file {arguments.prompt_file} holds no prompt. Write one on each line.")
    return prompts


def _picture_prompt(arguments):
    """Arguments of the call for the picture that an IP-adapter reads (none without one).

    Raises:
        InputError: an adapter without a picture, or a picture without an adapter.
    """
    if arguments.ip_adapter is None:
        for option in ("--ip-adapter-image", "--image-encoder"):
            if getattr(arguments, option[2:].replace("-", "_")) is not None:
                raise InputError(f"{option} goes with an IP-adapter. Name one by --ip-adapter.")
        return {}
    return {"ip_adapter_image": open_picture(arguments.ip_adapter_image, "--ip-adapter-image")}


def _previews(pipe, directory, prefix):
    """Arguments of the call that save previews into ``directory`` (none, if that is None)."""
    from ..pipelines.latent_preview import LatentPreview

    if directory is None:
        return {}
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise InputError(f"--preview {directory}: {error}. Name a directory that can be made.") from error

    def save(step, images):
        for i, image in enumerate(images):
            number = f"-{i + 1}" if len(images) > 1 else ""
            image.save(os.path.join(directory, f"{prefix}step-{step + 1:03}{number}.png"))

    return {"callback_on_step_end": LatentPreview.of(pipe).callback(save)}


def _seeds(seed, count):
    import random

    if count < 1:
        raise InputError(f"--num-images is {count}; it has to be 1 or more.")
    first = random.randrange(2**32) if seed is None else seed
    return [first + i for i in range(count)]


def _generators(seeds):
    from ..utils.random import TorchGenerator

    return [TorchGenerator(seed) for seed in seeds]


def _settings(arguments, call, seed, image):
    """What has to be known to draw ``image`` again: plain JSON values, without what was left at None."""
    settings = {
        **call,
        "num_images_per_prompt": None,  # this file holds one, and its seed draws it alone
        "seed": seed,
        "width": call["width"] or image.width,
        "height": call["height"] or image.height,
        "model": arguments.model,
        "config": arguments.config,
        "variant": arguments.variant,
        "dtype": arguments.dtype,
        "quantize": arguments.quantize,
        "lora": arguments.lora,
        "ip_adapter": arguments.ip_adapter,
        "ip_adapter_image": arguments.ip_adapter_image,
        "image_encoder": arguments.image_encoder,
        "textual_inversion": arguments.textual_inversion,
        "scheduler": arguments.scheduler,
        "cache": arguments.cache,
        "on_demand": arguments.on_demand or None,
        "without_t5": arguments.without_t5 or None,
        "prompt_weighting": arguments.prompt_weighting or None,
        "ppsd3_version": __version__,
    }
    if not getattr(arguments, "skip_guidance_layers", None):  # then its weight and its steps say nothing
        settings = {name: value for name, value in settings.items() if not name.startswith("skip_layer_guidance")}
    return {name: value for name, value in settings.items() if value is not None}
