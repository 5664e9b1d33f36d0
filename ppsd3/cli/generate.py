"""Draw pictures from a prompt and save them as PNG files that hold the settings."""

from .cfg_parallel import OPTION, draw_in_halves
from .drawing import add_drawing_arguments, draw, prepare_call


def add_arguments(parser):
    add_drawing_arguments(parser, _pipeline_class())
    parser.add_argument("--use-cfg-parallel", **OPTION)


def run(arguments):
    drawing = draw_in_halves if arguments.use_cfg_parallel else draw
    drawing(arguments, prepare_call(arguments, _pipeline_class()), _pipeline_class())


def _pipeline_class():
    from ..pipelines import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline
