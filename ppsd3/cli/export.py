"""Write a model's networks for Paddle Inference, which draws with them without this package.

Each network becomes a program and its weights, for every batch and size; inference_index.json says what each takes and
gives. docs/guide/export.md has a program that draws with them.
"""

from .options import add_loading_options, load_pipeline


def add_arguments(parser):
    parser.add_argument("model", metavar="MODEL", help="directory, hub id, .safetensors file or the bundled shapes")
    parser.add_argument("target", metavar="TARGET", help="a new or empty directory, or one of an earlier export")
    add_loading_options(parser)
    parser.set_defaults(
        quantize=None, cache=None, on_demand=False, prompt_weighting=False
    )  # what a model has no place for


def run(arguments):
    from ..pipelines.exporting import check_target, export_pipeline

    check_target(arguments.target)  # before a model is loaded
    print(export_pipeline(load_pipeline(arguments, quiet=True, load_components="on_demand"), arguments.target))
