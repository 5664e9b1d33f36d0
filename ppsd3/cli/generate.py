"""Draw pictures from a prompt and save them as PNG files that hold the settings."""

from .drawing import add_drawing_arguments, draw, prepare_call


def add_arguments(parser):
    add_drawing_arguments(parser, _pipeline_class())


def run(arguments):
    draw(arguments, prepare_call(arguments, _pipeline_class()), _pipeline_class())


def _pipeline_class():
    from ..pipelines import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline
