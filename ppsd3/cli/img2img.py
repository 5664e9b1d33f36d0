"""Draw pictures from a prompt and a picture, in the size of that picture, as PNG files that hold the settings."""

from .drawing import add_drawing_arguments, draw, prepare_call


def add_arguments(parser):
    add_drawing_arguments(parser, _pipeline_class())


def run(arguments):
    draw(arguments, prepare_call(arguments, _pipeline_class(), ["image"]), _pipeline_class(), "img2img")


def _pipeline_class():
    from ..pipelines import StableDiffusion3Img2ImgPipeline

    return StableDiffusion3Img2ImgPipeline
