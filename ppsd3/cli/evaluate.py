"""Score how well a model follows prompts: it draws unseen ones of GenEval's six tasks, and a judge reads the pictures.

`shapes` is the world that the bundled model draws; another model scores by drawing the same flat shapes. `samplers`
compares samplers with 200 Euler steps, by the distance of their final latents.
"""

from ..utils.errors import InputError
from ..utils.files import atomic_write, require_writable
from .call_options import add_call_options, call_arguments
from .options import add_model_options, load_pipeline

CALL_ARGUMENTS = ("num_inference_steps", "guidance_scale", "max_sequence_length")


def add_arguments(parser):
    parser.add_argument("what", choices=("shapes", "samplers"), metavar="WHAT", help="shapes or samplers")
    parser.add_argument(
        "--per-task", type=int, default=50, help="prompts of each task, up to 75 (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of prompts and noise (default: %(default)s)")
    parser.add_argument("--count", type=int, default=32, help="pictures for `samplers` (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=25, help="pictures drawn at once (default: %(default)s)")
    parser.add_argument("--sheet", metavar="FILE", help="save the first pictures of each task on one sheet (.png)")
    add_model_options(parser)
    add_call_options(parser, _pipeline_class(), only=CALL_ARGUMENTS)


def run(arguments):
    _check(arguments)
    pipe = load_pipeline(arguments, quiet=True)
    settings = pipe.with_call_defaults(call_arguments(arguments, _pipeline_class(), only=CALL_ARGUMENTS))
    if arguments.what == "samplers":
        _compare_samplers(pipe, arguments, settings)
    else:
        _score(pipe, arguments, settings)


def _pipeline_class():
    from ..pipelines import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline


def _compare_samplers(pipe, arguments, settings):
    from ..shapes.samplers import REFERENCE_STEPS, compare_samplers

    del settings["num_inference_steps"]  # each sampler has its own
    found = compare_samplers(pipe, arguments.count, arguments.seed, arguments.batch, **settings)
    print(f"{'sampler':<8} {'steps':>5} {'calls':>5}  RMSE to {REFERENCE_STEPS} Euler steps")
    for one in found:
        print(f"{one.name:<8} {one.steps:>5} {one.calls:>5}  {one.rmse:.3f}  ({one.rmse / found[0].rmse:.2f})")


def _score(pipe, arguments, settings):
    from ..shapes.evaluation import evaluate
    from ..shapes.sheet import contact_sheet

    shown = {}

    def keep(task, prompt, picture, right):
        if len(shown.setdefault(task, [])) < 8:
            shown[task].append((picture, ("" if right else "WRONG: ") + prompt))

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

    counts = {"--per-task": arguments.per_task, "--batch": arguments.batch, "--count": arguments.count}
    for option, value in counts.items():
        if value < 1:
            raise InputError(f"{option} is {value}; it has to be 1 or more.")
    for task in TASKS:
        evaluation_prompts(task, arguments.per_task, arguments.seed)
    if arguments.sheet:
        require_writable(arguments.sheet, "--sheet")
