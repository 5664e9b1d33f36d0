"""Draw the marked part of a picture anew, as PNG files that hold the settings."""

from ..utils.errors import InputError
from .drawing import add_drawing_arguments, draw, open_picture, size_like, take_settings
from .img2img import add_strength


def add_arguments(parser):
    parser.add_argument("--image", metavar="FILE", help="the picture")
    parser.add_argument("--mask", metavar="FILE", help="a picture of the same size: white is drawn anew, black stays")
    parser.add_argument("--mask-blur", type=int, default=0, metavar="PIXELS", help="make the mask's edges soft")
    parser.add_argument(
        "--padding-mask-crop",
        type=int,
        metavar="PIXELS",
        help="cut the marked part out with so many pixels around it, draw it large, and put it back",
    )
    add_strength(parser, _pipeline_class())
    add_drawing_arguments(parser, _pipeline_class())


def read_defaults(parser, rest):
    take_settings(parser, rest, "inpaint")


def run(arguments):
    from ..pipelines import VaeImageProcessor

    image, mask = open_picture(arguments.image, "--image"), open_picture(arguments.mask, "--mask").convert("L")
    if image.size != mask.size:
        raise InputError(f"--image is {image.size} pixels and --mask {mask.size}. Make them of one size.")
    if arguments.mask_blur:
        mask = VaeImageProcessor.blur(mask, arguments.mask_blur)
    size_like(arguments, image)
    numbers = {"strength": arguments.strength, "padding_mask_crop": arguments.padding_mask_crop}
    files = {"image": arguments.image, "mask": arguments.mask, "mask_blur": arguments.mask_blur, **numbers}
    files = {name: value for name, value in files.items() if value is not None}
    draw(arguments, _pipeline_class(), "inpaint", {"image": image, "mask_image": mask, **numbers}, files)


def _pipeline_class():
    from ..pipelines import StableDiffusion3InpaintPipeline

    return StableDiffusion3InpaintPipeline
