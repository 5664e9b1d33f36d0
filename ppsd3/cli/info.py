"""Say what a checkpoint or a file is, what it holds, how to load it, and whether it fits this machine.

Weights are not loaded: all is read from headers and names. Without a checkpoint: what this machine computes with.
"""

import dataclasses
import os
import shlex
from collections import Counter

from .. import __version__
from ..loaders.recognition import Component, recognize
from ..pipelines.component_classes import component_class
from ..pipelines.exporting import INDEX as EXPORT_INDEX
from ..serialization import Checkpoint
from ..utils.errors import CheckpointError, CheckpointFormatError, ConfigError, InputError
from ..utils.hub import resolve_checkpoint, resolve_file
from ..utils.json_files import read_json
from ..utils.pipeline_index import PIPELINE_INDEX as INDEX_NAME, named_class, present_components, read_pipeline_index
from ..utils.printable import printable
from ..utils.recognition import explain
from ..utils.sizes import in_words, parse_size
from ..utils.weight_names import PICKLE_SUFFIXES, available_variants
from .from_png import needs_trust
from .memory import choose, places, table
from .png import read_settings


def add_arguments(parser):
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT",
        help="directory, hub id or bundled model (shapes); or a file: networks, a LoRA, a learnt word, a picture",
    )
    parser.add_argument("--variant", help="which weight files, e.g. fp16 (default: the only ones there are)")
    parser.add_argument("--memory", metavar="SIZE", help="what would fit a GPU of this size, e.g. 12GB")


def run(arguments):
    if arguments.checkpoint is None:
        if arguments.variant is not None:
            raise InputError("--variant chooses among a checkpoint's files, and no checkpoint is named. Name it first.")
        if arguments.memory is not None:
            raise InputError("--memory says what of a checkpoint fits, and none is named. Name it first.")
        return print(_machine())
    if _is_file(arguments.checkpoint) and arguments.variant is not None:
        raise InputError("--variant chooses among the files of a directory; this is one file. Leave it out.")
    try:
        _show_checkpoint(arguments)
    except (CheckpointError, ConfigError):
        path = os.path.expanduser(arguments.checkpoint)
        known = explain(path, wanted="any") if os.path.lexists(path) else None
        if known is None:
            raise
        print(known)  # what it is, though it cannot be used


def _show_checkpoint(arguments):
    if _is_file(arguments.checkpoint):
        return _show_file(arguments.checkpoint, arguments.memory)
    directory = resolve_checkpoint(arguments.checkpoint, variant=arguments.variant)
    if not os.path.isfile(os.path.join(directory, INDEX_NAME)):
        return _show_directory(directory, arguments.variant, arguments.memory)
    index = read_pipeline_index(directory)
    components = [
        read_component(directory, name, class_name, arguments.variant)
        for name, class_name in present_components(index).items()
    ]
    print(printable(f"{index.get('_class_name')} in {directory}") + "\n")
    print("\n".join(map(printable, _component_table(components))) + "\n")
    print("\n".join(_memory(components, arguments.memory, arguments.checkpoint)) + "\n")
    print(_machine())


def _is_file(name):
    return os.path.isfile(os.path.expanduser(name)) or name.lower().endswith((".safetensors", *PICKLE_SUFFIXES))


def _show_file(name, memory):
    if name.lower().endswith(".png"):
        return _show_picture(name)
    _show(recognize(resolve_file(name)), memory)


def _show(found, memory):
    print(printable(f"{found.path}: {found.what}") + "\n")
    print("\n".join(map(printable, _component_table(found.components))) + "\n")
    print("\n".join(map(printable, found.facts)) + "\n")
    if found.is_network:
        print("\n".join(_memory(found.components, memory)) + "\n")
    print("load it:\n  " + "\n  ".join(map(printable, found.load)))


def _show_picture(name):
    settings = read_settings(name)
    print(f"{name}: a picture that ppsd3 {printable(settings.get('ppsd3_version', ''))} drew\n")
    print("\n".join(f"{name.replace('_', ' ')}: {printable(value)}" for name, value in settings.items()) + "\n")
    print(f"draw it again:\n  ppsd3 {printable(settings.get('command', 'generate'))} --from-png {shlex.quote(name)}")
    used = [name.replace("_", " ") for name in needs_trust(settings)]
    if used:
        print(f"with --trust-png if its {', '.join(map(printable, used))} may be used, or with these options given")


def _show_directory(directory, variant, memory):
    """A directory that is no pipeline: one component, files of weights, or models for Paddle Inference."""
    if os.path.isfile(os.path.join(directory, EXPORT_INDEX)):
        return _show_export(directory)
    for config, purpose in _CONFIGS.items():
        if os.path.isfile(os.path.join(directory, config)):
            return _show_component(directory, read_json(os.path.join(directory, config), purpose), variant)
    files = sorted(name for name in os.listdir(directory) if name.endswith(".safetensors"))
    if not files:
        raise CheckpointFormatError(
            f"{directory} holds no checkpoint: neither model_index.json nor {', '.join(_CONFIGS)}, nor a safetensors "
            "file. Check the path."
        )
    for name in files:
        _show(recognize(os.path.join(directory, name)), memory)
        print()


def _show_export(directory):
    index = read_json(os.path.join(directory, EXPORT_INDEX), purpose="the list of an export's models")
    lines = [f"{directory}: models for Paddle {index.get('paddle_version')}'s inference\n"]
    try:
        for name, model in index["models"].items():
            lines.append(f"{name:16} {in_words(os.path.getsize(os.path.join(directory, model['weights'])))}")
            for verb, ports in (("takes", model["inputs"]), ("gives", model["outputs"])):
                for port in ports:
                    lines.append(f"  {verb} {port['name']:24} {port['dtype']} {port['shape']}: {port['meaning']}")
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise CheckpointFormatError(
            f"{os.path.join(directory, EXPORT_INDEX)} is not as `ppsd3 export` writes it ({error}). Export again."
        ) from error
    print("\n".join(lines))
    print("\ndocs/guide/export.md has a program that draws with them.")


# File that makes a directory a component -> what it holds.
_CONFIGS = {
    "config.json": "the configuration of a network",
    "scheduler_config.json": "the configuration of a scheduler",
    "tokenizer_config.json": "the settings of a tokenizer",
}


def _show_component(directory, config, variant):
    parent, name = os.path.split(os.path.abspath(directory))
    named = named_class(config)
    part = read_component(parent, name, named, variant)
    print(f"{directory}: a component of a pipeline\n")
    print("\n".join(map(printable, _component_table([part]))) + "\n")
    options = "" if variant is None else f", variant={variant!r}"
    class_name = component_class(name, named, directory).__name__
    print(f"load it:\n  ppsd3.{class_name}.from_pretrained({directory!r}{options})")


def read_component(directory, name, class_name, variant=None):
    """What the files of one component say; weights are counted from their headers."""
    folder = os.path.join(directory, name)
    on_disk = sum(os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder))
    kind = component_class(name, class_name, directory)
    weights_name = getattr(kind, "weights_name", None)
    if weights_name is None:
        return Component(name, class_name, 0, Counter(), on_disk)
    variants = available_variants(os.listdir(folder))
    chosen = variants[0] if variant is None and len(variants) == 1 else variant
    checkpoint = Checkpoint.open(folder, weights_name, chosen)
    return dataclasses.replace(Component.of(name, kind, checkpoint, on_disk), class_name=class_name)


def _component_table(components):
    yield f"{'component':16} {'class':32} {'parameters':>11} {'on disk':>10}  dtype"
    for part in components:
        values = _count(part.values) if part.values else ""
        dtypes = ", ".join(part.dtypes)
        yield f"{part.name:16} {part.class_name:32} {values:>11} {in_words(part.bytes_on_disk):>10}  {dtypes}"
    if len(components) == 1:
        return
    total = sum(part.values for part in components), sum(part.bytes_on_disk for part in components)
    yield f"{'total':16} {'':32} {_count(total[0]):>11} {in_words(total[1]):>10}"


def _memory(components, memory, source=None):
    """What fits where, and what to call for ``source``, a pipeline's checkpoint."""
    among = places(parse_size(memory, "--memory") if memory is not None else None)
    yield from table(components, among)
    if source is None:
        return
    choice = choose(components, among, source)
    if choice is None:
        yield f"\nno way leaves room for a picture of 1024x1024 on {among[-1].name}; draw smaller ones"
    else:
        yield f"\nuse on {among[-1].name}, for {choice.reason}:"
        yield from (f"  {line}" for line in choice.lines)


def _machine():
    import paddle

    from ..ops import dispatch, native
    from ..utils.device import tune_process

    in_use, detail = native.status()
    return "\n".join(
        [
            f"ppsd3 {__version__}, Paddle {paddle.__version__} on {paddle.get_device()}",
            f"this process: {'; '.join(tune_process())}",
            f"native CPU kernels: {'in use' if in_use else 'not in use'} ({detail})",
            "what computes an operation: the first of these that takes its arguments",
            *(f"  {line}" for line in dispatch.summary()),
            *_advice(),
        ]
    )


def _advice():
    """What may make pictures on a GPU quicker, and is not done unasked."""
    from ..ops import features

    if features.card() is not None:
        yield "up to 512x512, launching kernels takes longer than computing: pipe.compile() (docs/performance.md)"


def _count(number):
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return str(number)
