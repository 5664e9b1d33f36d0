"""Train: fine-tune a model by a LoRA or whole, teach it a word, or train a ControlNet, an IP-adapter or the VAE, as a
YAML file and options say.

The main options of diffusers', ppdiffusers' and kohya's scripts are taken too, with the meaning that they have there;
docs/training-options.md lists them.
"""

import argparse
import sys

from ..training.option_names import ALL, FLAGS
from ..utils.errors import ConfigError


def add_arguments(parser):
    parser.add_argument("configuration", nargs="?", metavar="FILE", help="YAML file of the run; see docs/training.md")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting on top of the file's, e.g. training.max_steps=500; may be given often",
    )
    parser.add_argument("--model", help="what to train: shapes, a directory, a hub id or a file")
    parser.add_argument("--data", metavar="PATH", help="pictures with captions: data.path")
    parser.add_argument("--output", metavar="DIR", help="of states, log and result")
    parser.add_argument(
        "--resume",
        "--resume_from_checkpoint",
        default="latest",
        metavar="STATE",
        help="a state of the run, or the path of one (default: the latest)",
    )
    parser.add_argument("--override", action="store_true", help="resume although settings differ from the state's")
    for name in sorted(set(ALL)):
        kind = {"action": "store_true"} if name in FLAGS else {}
        parser.add_argument(f"--{name}", dest=f"other_{name}", default=None, help=argparse.SUPPRESS, **kind)
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="tell memory by kind and time from a few measured steps, and stop. For SD3-medium, SD3.5-medium or "
        "SD3.5-large as --model, memory alone, without the weights",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="do one step of everything in a temporary directory, say what the run would do and write, and stop",
    )
    parser.add_argument("--plot", metavar="RUN_DIR", help="draw RUN_DIR/log.jsonl to RUN_DIR/log.png, and stop")
    parser.add_argument("--list", action="store_true", help="list all settings with their defaults, and stop")


def run(arguments):
    from ..training.configuration import TrainConfiguration, list_settings, read_configuration

    if arguments.list:
        print("\n".join(list_settings(TrainConfiguration)))
        return 0
    if arguments.plot is not None:
        from ..training.plots import plot_run

        print(plot_run(arguments.plot))
        return 0
    named = {"model": arguments.model, "data.path": arguments.data, "output": arguments.output}
    settings = [*arguments.settings, *(f"{name}={value!r}" for name, value in named.items() if value is not None)]
    others = {name: getattr(arguments, f"other_{name}") for name in ALL}
    others = {name: value for name, value in others.items() if value is not None}
    if arguments.configuration is None and not settings and not others:
        raise ConfigError("Name the YAML file of a run, or give --model, --data and --output.")
    configuration = read_configuration(arguments.configuration, settings, others)
    if arguments.estimate or arguments.dry_run:
        print("\n".join(_told(configuration, arguments)))
        return 0
    from ..training.runs import TrainingRun

    path = TrainingRun(configuration, arguments.resume, arguments.override).run()
    print(path, file=sys.stdout)
    return 0


def _told(configuration, arguments):
    if arguments.estimate:
        from ..training.estimate import estimate_training

        yield from estimate_training(configuration).lines()
    if arguments.dry_run:
        from ..training.rehearsal import dry_run

        yield from dry_run(configuration)
