"""Redraw the masked part of a picture, as PNG files that hold the settings."""

from ..utils.errors import InputError
from .drawing import add_drawing_arguments, draw, prepare_call


def add_arguments(parser):
    parser.add_argument("--mask-blur", type=int, default=0, metavar="PIXELS", help="make the mask's edges soft")
    add_drawing_arguments(parser, _pipeline_class())


def run(arguments):
    from ..pipelines import VaeImageProcessor

    call = prepare_call(arguments, _pipeline_class(), ["image", "mask_image"])
    image, mask = call["image"], call["mask_image"]
    if image.size != mask.size:
        raise InputError(f"--image is {image.size} pixels and --mask {mask.size}. Make them of one size.")
    call["mask_image"] = VaeImageProcessor.blur(mask, arguments.mask_blur) if arguments.mask_blur else mask
    draw(arguments, call, _pipeline_class(), "inpaint", {"mask_blur": arguments.mask_blur or None})


def _pipeline_class():
    from ..pipelines import StableDiffusion3InpaintPipeline

    return StableDiffusion3InpaintPipeline
