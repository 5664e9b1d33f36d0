"""What the commands that draw have in common: prompts, seeds, files, and the settings that go into each PNG."""

from __future__ import annotations

import os
import random
from typing import Any

from .. import __version__
from ..utils.errors import InputError
from ..utils.files import atomic_write
from ..utils.random import TorchGenerator
from ..utils.ranks import current_ranks
from . import from_png
from .call_options import add_call_options, call_arguments, given_values
from .options import add_model_options, load_ip_adapter, load_pipeline
from .png import names_directory, output_files, save_png
from .prompt_files import read_prompts

# What of the options goes into a PNG, beside those of the call: what has to be known to draw it again.
_RECORDED = (
    *("model", "config", "variant", "dtype", "quantize", "lora", "ip_adapter", "image_encoder", "textual_inversion"),
    *("scheduler", "cache", "on_demand", "without_t5", "prompt_weighting"),
)

_MOST_PICTURES = 10_000


def add_drawing_arguments(parser, *pipeline_classes):
    """The arguments of every such command; options and defaults are those of the calls of ``pipeline_classes``."""
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="what to draw")
    parser.add_argument("--prompt-file", metavar="FILE", help="a prompt on each line, drawn one after the other")
    from_png.add_arguments(parser)
    add_model_options(parser)
    parser.add_argument(
        "--ip-adapter",
        metavar="FILE[:SCALE]",
        help="an IP-adapter, for pictures as prompts: file, directory or hub id, and its weight (default: 0.5)",
    )
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
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="a .png file, which is replaced (of several pictures FILE-1.png, FILE-2.png, ...); or a directory (DIR/ "
        "is made), where files are named after prompt and seed and nothing is replaced (default: this directory)",
    )
    parser.add_argument("--preview", metavar="DIR", help="save a small picture of each step into this directory")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no file names")
    add_call_options(parser, *pipeline_classes)


def draw(
    arguments: Any,
    call: dict[str, Any],
    pipeline_class: Any,
    command: str = "generate",
    more: dict[str, Any] | None = None,
    load: Any = load_pipeline,
    deal: Any = None,
) -> None:
    """Draws what ``arguments`` ask for and saves it.

    Args:
        call: keyword arguments of the pipeline's call, as :func:`prepare_call` makes them.
        command: that can draw it again.
        more: further settings for the PNG file, of the command's own options.
        load: (arguments, quiet, pipeline_class) -> pipeline.
        deal: (number of prompts) -> indices of those to draw. Default: each process that was launched has its share.
    """
    prompts = _prompts(arguments)
    seeds = _seeds(arguments.seed, arguments.num_images_per_prompt)
    targets = output_files(arguments.output, prompts, seeds)
    pipe = load(arguments, arguments.quiet, pipeline_class)
    call = pipe.with_call_defaults(call)
    named = given_values(arguments, pipeline_class)
    given = {name: call.get(name) if value is None else value for name, value in named.items()}
    given = {**given, **(more or {}), "command": command}
    load_ip_adapter(pipe, arguments.ip_adapter, arguments.image_encoder)
    for index in (deal or current_ranks().deal)(len(prompts)):
        watching = _previews(pipe, arguments.preview, f"{index + 1}-" if len(prompts) > 1 else "")
        images = pipe(prompt=prompts[index], generator=list(map(TorchGenerator, seeds)), **call, **watching).images
        for image, seed, target in zip(images, seeds, targets[index * len(seeds) :]):
            settings = {"prompt": prompts[index], **_settings(arguments, given, seed, image)}
            file = save_png(image, target, settings, replace=not names_directory(arguments.output))
            if not arguments.quiet:
                print(file)


def prepare_call(arguments: Any, pipeline_class: Any, pictures: Any = (), others: Any = ()) -> dict[str, Any]:
    """Keyword arguments of the call, with pictures opened, in the size of the first of ``pictures`` (their names).

    Raises:
        InputError: a picture is missing or cannot be opened, or options do not go together.
    """
    _check_picture_prompt(arguments)
    call = call_arguments(arguments, pipeline_class, others)
    for argument in pipeline_class.call_arguments():
        if argument.name in pictures and call[argument.name] is None:
            raise InputError(f"{argument.option} is missing. Name a picture.")
    if pictures:
        first = call[pictures[0]]
        size_like(call, first[0] if isinstance(first, list) else first)
    return call


def size_like(call, image, multiple=16):
    """Sets height and width that were left out to those of ``image``, down to a multiple of 16 pixels."""
    for name, size in (("height", image.height), ("width", image.width)):
        if call[name] is None:
            call[name] = max(multiple, size - size % multiple)


def _prompts(arguments):
    if arguments.prompt_file is None:
        if arguments.prompt is None:
            raise InputError("There is no PROMPT. Give one, or --prompt-file with one on each line.")
        return [arguments.prompt]
    if arguments.prompt is not None and arguments.from_png is None:
        raise InputError("Both PROMPT and --prompt-file are given. Give one of the two.")
    return read_prompts(arguments.prompt_file)


def _check_picture_prompt(arguments):
    """An IP-adapter has a picture, and a picture an adapter."""
    if arguments.ip_adapter is not None and arguments.ip_adapter_image is None:
        raise InputError("--ip-adapter-image is missing. Name a picture.")
    for option in ("--ip-adapter-image", "--image-encoder"):
        if arguments.ip_adapter is None and getattr(arguments, option[2:].replace("-", "_")) is not None:
            raise InputError(f"{option} goes with an IP-adapter. Name one by --ip-adapter.")


def _previews(pipe: Any, directory: Any, prefix: str) -> dict[str, Any]:
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
            with atomic_write(os.path.join(directory, f"{prefix}step-{step + 1:03}{number}.png")) as file:
                image.save(file, format="PNG")

    return {"callback_on_step_end": LatentPreview.of(pipe).callback(save)}


def _seeds(seed, count):
    if not 1 <= count <= _MOST_PICTURES:
        raise InputError(f"--num-images is {count}; it has to be 1 or more, up to {_MOST_PICTURES} at once.")
    first = current_ranks().agree(random.randrange(2**32)) if seed is None else seed
    return [first + i for i in range(count)]


def _settings(arguments, given, seed, image):
    """What has to be known to draw ``image`` again: plain JSON values, without what was left at None."""
    settings = {
        **given,
        "num_images_per_prompt": None,  # this file holds one, and its seed draws it alone
        "seed": seed,
        "width": given["width"] or image.width,
        "height": given["height"] or image.height,
        **{name: getattr(arguments, name) or None for name in _RECORDED},
        "ppsd3_version": __version__,
    }
    if not getattr(arguments, "skip_guidance_layers", None):  # then its weight and its steps say nothing
        settings = {name: value for name, value in settings.items() if not name.startswith("skip_layer_guidance")}
    return {name: value for name, value in settings.items() if value is not None}
