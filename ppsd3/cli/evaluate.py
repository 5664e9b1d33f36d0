"""Score how well a model follows prompts: it draws unseen ones of GenEval's six tasks, and a judge reads the pictures.

`shapes` is the world that the bundled model draws; another model scores by drawing the same flat shapes.
"""

import os

from ..utils.errors import InputError
from ..utils.files import atomic_write
from .options import add_call_options, add_model_options, call_arguments, load_pipeline

CALL_OPTIONS = ("--steps", "--guidance-scale", "--max-sequence-length")


def add_arguments(parser):
    parser.add_argument("world", choices=("shapes",), metavar="WORLD", help="shapes")
    parser.add_argument(
        "--per-task", type=int, default=50, help="prompts of each task, up to 75 (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of prompts and noise (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=25, help="pictures drawn at once (default: %(default)s)")
    parser.add_argument("--sheet", metavar="FILE", help="save the first pictures of each task on one sheet (.png)")
    add_model_options(parser)
    add_call_options(parser, CALL_OPTIONS)


def run(arguments):
    from ..shapes.evaluation import evaluate
    from ..shapes.sheet import contact_sheet

    _check(arguments)
    pipe = load_pipeline(arguments, quiet=True)
    shown = {}

    def keep(task, prompt, picture, right):
        if len(shown.setdefault(task, [])) < 8:
            shown[task].append((picture, ("" if right else "WRONG: ") + prompt))

    settings = call_arguments(arguments, CALL_OPTIONS)
    result = evaluate(pipe, arguments.per_task, arguments.seed, arguments.batch, on_picture=keep, **settings)
    print(result.table())
    if arguments.sheet:
        cells = [cell for task in shown.values() for cell in task]
        sheet = contact_sheet([picture for picture, _ in cells], [text for _, text in cells], columns=8)
        with atomic_write(arguments.sheet) as file:
            sheet.save(file, format="PNG")


def _check(arguments):
    """Refuses before the model is loaded what would fail after it."""
    from ..shapes.prompts import evaluation_prompts
    from ..shapes.scene import TASKS

    for option, value in (("--per-task", arguments.per_task), ("--batch", arguments.batch)):
        if value < 1:
            raise InputError(f"{option} is {value}; it has to be 1 or more.")
    for task in TASKS:
        evaluation_prompts(task, arguments.per_task, arguments.seed)
    if arguments.sheet:
        directory = os.path.dirname(os.path.abspath(arguments.sheet))
        if not os.path.isdir(directory):
            raise InputError(f"--sheet: the directory {directory} does not exist; make it first.")
