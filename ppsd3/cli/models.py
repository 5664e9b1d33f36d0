"""List, download, check and remove models: those that come with ppsd3, and those in the cache of the Hugging Face hub.

Without an action: list. A download that was interrupted goes on where it was; `check` reads all configurations and
headers, no weights; `remove` asks, and removes from the cache alone.
"""

import os
import sys

from ..utils.errors import CheckpointError, CheckpointNotFoundError, InputError, PPSD3Error
from ..utils.files import bytes_in
from ..utils.hub import BUNDLED, resolve_checkpoint
from ..utils.hub_cache import cache_directory, cached_models, remove_cached
from ..utils.json_files import MOST_BYTES_OF_VOCABULARY, read_json
from ..utils.pipeline_index import PIPELINE_INDEX, present_components, read_pipeline_index
from ..utils.printable import printable
from ..utils.sizes import in_words
from .info import read_component


def add_arguments(parser):
    actions = parser.add_subparsers(metavar="ACTION", dest="action")
    actions.add_parser("list", help="what there is, with its size on disk (the default)")
    download = actions.add_parser("download", help="fetch a pipeline into the cache")
    download.add_argument("model", metavar="ID", help="hub id, e.g. stabilityai/stable-diffusion-3.5-medium")
    download.add_argument("--variant", help="which weight files, e.g. fp16 (default: the only ones there are)")
    download.add_argument("--revision", help="branch, tag or commit")
    download.add_argument("--without-t5", action="store_true", help="leave out the largest text encoder")
    check = actions.add_parser("check", help="whether everything that its index names is there and readable")
    check.add_argument("model", metavar="MODEL", help="directory, id in the cache, or bundled model")
    check.add_argument("--variant", help="which weight files, e.g. fp16 (default: the only ones there are)")
    remove = actions.add_parser("remove", help="remove a pipeline from the cache")
    remove.add_argument("model", metavar="ID", help="as listed")
    remove.add_argument("--yes", action="store_true", help="do not ask")


def run(arguments):
    return _ACTIONS[arguments.action or "list"](arguments)


def _list(arguments):
    rows = [(name, bytes_in(path), "comes with ppsd3") for name, path in BUNDLED.items()]
    rows += [(model.repo_id, model.bytes_on_disk, model.path) for model in cached_models()]
    width = max(len(name) for name, *_ in rows)
    for name, size, where in rows:
        print(printable(f"{name:{width}}  {in_words(size):>10}  {where}"))


def _download(arguments):
    if os.path.isdir(os.path.expanduser(arguments.model)) or arguments.model in BUNDLED:
        raise InputError(
            f"{arguments.model} is here already. `ppsd3 models check {arguments.model}` looks whether it is whole."
        )
    left_out = ("text_encoder_3", "tokenizer_3") if arguments.without_t5 else ()
    directory = resolve_checkpoint(
        arguments.model, variant=arguments.variant, revision=arguments.revision, skip_components=left_out
    )
    print(printable(directory))


def _check(arguments):
    directory = resolve_checkpoint(arguments.model, variant=arguments.variant, local_files_only=True)
    if not os.path.isfile(os.path.join(directory, PIPELINE_INDEX)):
        raise CheckpointNotFoundError(
            f"{directory} has no {PIPELINE_INDEX}: it is no pipeline. `ppsd3 info {arguments.model}` says what it is."
        )
    faults = []
    for name, class_name in present_components(read_pipeline_index(directory)).items():
        try:
            part = read_component(directory, name, class_name, arguments.variant)
            for path in _files(os.path.join(directory, name)):
                if path.endswith(".json"):
                    read_json(path, f"a file of {name}", MOST_BYTES_OF_VOCABULARY)
            print(printable(f"{name:16} whole, {in_words(part.bytes_on_disk)}"))
        except (PPSD3Error, OSError) as error:
            faults.append(name)
            print(printable(f"{name:16} {error}"))
    if faults:
        raise CheckpointError(
            f"{arguments.model}: {', '.join(faults)} cannot be used so. Get what is missing (`ppsd3 models download` "
            "goes on where it was), or pass None for a text encoder that you do without."
        )


def _remove(arguments):
    found = {model.repo_id: model for model in cached_models()}
    if arguments.model not in found:
        named = f"It has {', '.join(found)}." if found else "It has none."
        raise CheckpointNotFoundError(
            f"The cache {cache_directory()} has no pipeline {arguments.model}. {named} What is elsewhere stays there."
        )
    model = found[arguments.model]
    if not arguments.yes and not _agreed(
        f"Remove {model.repo_id} ({in_words(model.bytes_on_disk)}) from the cache? [y/N] "
    ):
        print("nothing was removed")
        return
    remove_cached(model)
    print(printable(f"removed {model.repo_id}: {in_words(model.bytes_on_disk)}"))


def _agreed(question):
    if not sys.stdin.isatty():
        raise InputError("Nobody can be asked here whether to remove it. Say --yes.")
    return input(question).strip().lower() in ("y", "yes")


def _files(directory):
    return [os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names]


_ACTIONS = {"list": _list, "download": _download, "check": _check, "remove": _remove}
