"""PNG files that know how they were drawn."""

import json
import os
import re

from ..utils.errors import InputError
from ..utils.files import atomic_write
from ..utils.json_files import parse_json_object

SETTINGS_KEY = "ppsd3"  # JSON, for programs
PARAMETERS_KEY = "parameters"  # prose, where picture viewers of this field look


def output_files(output, prompts, seeds):
    """The PNG files for each of ``seeds`` of the first prompt, then of the next, checked to be writable before any
    picture is drawn.

    Args:
        output: a file, or an existing directory. None: the current directory. In a directory, files are
            named after prompt and seed.
        prompts (list of str), seeds (list of int): one picture for each of both. Several to one file get ``-1``,
            ``-2``, ... before ``.png``.

    Raises:
        InputError: another extension than ``.png``, or a directory that is missing or cannot be written to.
    """
    output = output or "."
    if os.path.isdir(output):
        slugs = [_slug(prompt) for prompt in prompts]
        numbered = [slug if slugs.count(slug) == 1 else f"{slug}-{i + 1}" for i, slug in enumerate(slugs)]
        files = [os.path.join(output, f"{slug}-{seed}.png") for slug in numbered for seed in seeds]
    else:
        stem, extension = os.path.splitext(output)
        if extension.lower() != ".png":
            raise InputError(
                f"--output {output} does not end in .png, the format that carries the settings. Name a .png file, or a "
                "directory that exists."
            )
        count = len(prompts) * len(seeds)
        files = [output] if count == 1 else [f"{stem}-{i + 1}{extension}" for i in range(count)]
    directory = os.path.dirname(os.path.abspath(files[0]))
    if not os.path.isdir(directory):
        raise InputError(f"--output: the directory {directory} does not exist. Make it first, or choose another.")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise InputError(f"--output: no permission to write to {directory}. Choose another directory.")
    taken = [file for file in files if os.path.isdir(file)]
    if taken:
        raise InputError(f"--output: {taken[0]} is a directory. Choose another name.")
    return files


def _slug(prompt):
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:60].strip("-") or "picture"


def save_png(image, path, settings):
    """Writes ``image`` (PIL) with ``settings`` (dict of JSON values) as text chunks; all of the file or nothing."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(PARAMETERS_KEY, describe(settings))
    info.add_text(SETTINGS_KEY, json.dumps(settings, ensure_ascii=False))
    with atomic_write(path) as file:
        image.save(file, format="PNG", pnginfo=info)


def read_settings(path):
    """The settings that ``save_png`` wrote into the file at ``path``.

    Raises:
        InputError: the file is no PNG of ppsd3's.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(SETTINGS_KEY)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is no picture. Name a PNG that `ppsd3 generate` wrote.") from error
    if text is None:
        raise InputError(f"{path} does not say how it was drawn. Name a PNG that `ppsd3 generate` wrote.")
    return parse_json_object(text, f"{path}: its text {SETTINGS_KEY!r}", InputError)


def describe(settings):
    """``settings`` in prose: the prompt, the negative prompt, then ``name: value`` pairs on one line."""
    rest = dict(settings)
    lines = [rest.pop("prompt")]
    negative = rest.pop("negative_prompt", None)
    if negative:
        lines.append(f"Negative prompt: {negative}")
    pairs = (f"{name.replace('_', ' ')}: {value}" for name, value in rest.items() if value is not None)
    return "\n".join([*lines, ", ".join(pairs)])
