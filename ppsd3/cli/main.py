"""Entry point of the program ``ppsd3``: finds the command, runs it, and turns errors into one line."""

import argparse
import importlib
import sys

from .. import __version__
from ..utils.device import tune_process
from ..utils.errors import PPSD3Error
from ..utils.interruption import Terminated, terminable
from ..utils.printable import guarded_streams
from .from_png import take_settings

# Command -> what it does. Each is a module of that name beside this one, imported only when it is called, with
# `add_arguments(parser)` and `run(arguments) -> exit code or None`. Its docstring is the command's description.
COMMANDS = {
    "intro": "what to begin with, as without a command",
    "generate": "draw pictures from a prompt",
    "img2img": "draw pictures from a prompt and a picture",
    "inpaint": "draw a marked part of a picture anew",
    "control": "draw pictures guided by a picture, through a ControlNet",
    "webui": "a page in the browser to draw with",
    "train": "fine-tune a model, or train a LoRA, a ControlNet, an IP-adapter or a word",
    "serve": "an HTTP server with OpenAI's images API and A1111's",
    "evaluate": "score how well a model follows prompts",
    "bench": "measure speed and memory beside diffusers and OpenVINO",
    "models": "list, download, check and remove models",
    "convert": "a checkpoint from one layout or dtype to another",
    "export": "a model's networks as models for Paddle Inference",
    "doctor": "check the installation and its GPUs, and directories for what interrupted saves left",
    "info": "what a checkpoint holds, and whether it fits this machine",
}

USAGE_ERROR = 2  # what argparse exits with, too
INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT and + SIGTERM, as shells have it


@guarded_streams()
def main(argv=None):
    """Runs ``ppsd3 COMMAND ...`` and returns its exit code: 0, 2 for what the user can mend, 1 for a defect of ours."""
    if argv is None:  # the process is ours
        sys.excepthook = guarded_streams()(sys.__excepthook__)
    arguments = None
    try:
        with terminable():
            arguments = _parse(argv)
            arguments.tune()
            return arguments.run(arguments) or 0
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if arguments is not None and arguments.debug:
            raise
        known = isinstance(error, (PPSD3Error, OSError))
        what = str(error) if known else f"{type(error).__name__}: {error} (run again with --debug to see where)"
        print(f"ppsd3: error: {' '.join(what.split())}", file=sys.stderr)
        return USAGE_ERROR if known else 1


def _parse(argv):
    listed = "\n".join(f"  {name:10} {summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="ppsd3",
        description="Stable Diffusion 3 and 3.5 on PaddlePaddle.",
        epilog=f"commands:\n{listed}\n\n`ppsd3 COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ppsd3 {__version__}")
    parser.add_argument("command", metavar="COMMAND", nargs="?", default="intro", choices=COMMANDS, help="see below")
    parser.add_argument("rest", metavar="...", nargs=argparse.REMAINDER, help="the command's own arguments")
    outer = parser.parse_args(argv)

    module = importlib.import_module(f".{outer.command}", __package__)
    command = argparse.ArgumentParser(prog=f"ppsd3 {outer.command}", description=module.__doc__)
    command.set_defaults(run=module.run, debug=False, tune=tune_process)
    module.add_arguments(command)
    command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    arguments = command.parse_args(outer.rest)
    if getattr(arguments, "from_png", None) is None:
        return arguments
    take_settings(command, outer.rest, outer.command)
    return command.parse_args(outer.rest)
