"""Draw pictures from a prompt and a picture, in the size of that picture, as PNG files that hold the settings."""

from .drawing import add_drawing_arguments, draw, open_picture, size_like, take_settings
from .options import default_of


def add_arguments(parser):
    parser.add_argument("--image", metavar="FILE", help="the picture to begin with")
    add_strength(parser, _pipeline_class())
    add_drawing_arguments(parser, _pipeline_class())


def add_strength(parser, pipeline_class):
    default = default_of(pipeline_class, "strength")
    text = f"how far to go from the picture: 0 not at all, 1 as far as without it (default: {default})"
    parser.add_argument("--strength", type=float, default=default, help=text)


def read_defaults(parser, rest):
    take_settings(parser, rest, "img2img")


def run(arguments):
    image = open_picture(arguments.image, "--image")
    size_like(arguments, image)
    own = {"image": image, "strength": arguments.strength}
    draw(arguments, _pipeline_class(), "img2img", own, {"image": arguments.image, "strength": arguments.strength})


def _pipeline_class():
    from ..pipelines import StableDiffusion3Img2ImgPipeline

    return StableDiffusion3Img2ImgPipeline
