"""Draw pictures from a prompt and a picture that guides them (a ControlNet), as PNG files that hold the settings."""

from ..utils.errors import InputError
from .drawing import add_drawing_arguments, draw, open_picture, size_like, take_settings
from .img2img import add_strength
from .options import load_pipeline


def add_arguments(parser):
    parser.add_argument(
        "--controlnet",
        metavar="MODEL",
        action="append",
        help="directory, hub id, .safetensors file or the bundled shapes-silhouette; several are added",
    )
    parser.add_argument(
        "--control-image", metavar="FILE", action="append", help="what guides it, e.g. edges: one for each --controlnet"
    )
    for option, default, text in (
        ("--control-scale", 1.0, "weight of the ControlNet"),
        ("--control-start", 0.0, "part of the steps at which it starts"),
        ("--control-end", 1.0, "part of the steps at which it stops"),
    ):
        parser.add_argument(
            option, type=float, nargs="+", default=[default], metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument(
        "--canny-8b",
        action="store_true",
        help="scale pixels of the control picture as Stability AI's canny ControlNet for SD3.5-large needs them",
    )
    parser.add_argument(
        "--mask", metavar="FILE", help="for inpainting ControlNets: white of the control picture is drawn anew"
    )
    parser.add_argument("--image", metavar="FILE", help="a picture to begin with, as in img2img")
    add_strength(parser, _pipeline_class("Img2Img"))
    add_drawing_arguments(parser, _pipeline_class())


def read_defaults(parser, rest):
    take_settings(parser, rest, "control")


def run(arguments):
    nets, paths = arguments.controlnet or (), arguments.control_image or ()
    if not nets or len(nets) != len(paths):
        raise InputError(
            f"There are {len(nets)} --controlnet and {len(paths)} --control-image. Give one or more, in pairs."
        )
    if arguments.mask is not None and arguments.image is not None:
        raise InputError(
            "Both --mask and --image are given. An inpainting ControlNet begins with noise: leave one out."
        )
    pictures = [open_picture(path, "--control-image") for path in paths]
    numbers = {name: getattr(arguments, name) for name in ("control_scale", "control_start", "control_end")}
    own = {
        "control_image": pictures[0] if len(pictures) == 1 else pictures,
        "controlnet_conditioning_scale": _each(arguments.control_scale),
        "control_guidance_start": _each(arguments.control_start),
        "control_guidance_end": _each(arguments.control_end),
    }
    files = {"controlnet": nets, "control_image": paths, **numbers, "canny_8b": arguments.canny_8b or None}
    task, first = "", pictures[0]
    if arguments.mask is not None:
        task, own["control_mask"] = "Inpainting", open_picture(arguments.mask, "--mask").convert("L")
        files["mask"] = arguments.mask
    elif arguments.image is not None:
        first = own["image"] = open_picture(arguments.image, "--image")
        task, own["strength"] = "Img2Img", arguments.strength
        files.update(image=arguments.image, strength=arguments.strength)
    size_like(arguments, first)
    files = {name: value for name, value in files.items() if value is not None}
    draw(arguments, _pipeline_class(task), "control", own, files, load=_load)


def _load(arguments, quiet, pipeline_class):
    from ..models import SD3ControlNetModel
    from ..pipelines import SD3CannyImageProcessor

    options = {"paddle_dtype": arguments.dtype, "storage_dtype": "float16" if arguments.on_demand else None}
    nets = [
        SD3ControlNetModel.from_single_file(model, **options)
        if model.endswith(".safetensors")
        else SD3ControlNetModel.from_pretrained(model, **options)
        for model in arguments.controlnet
    ]
    pipe = load_pipeline(arguments, quiet, pipeline_class, controlnet=nets[0] if len(nets) == 1 else nets)
    if arguments.canny_8b:
        pipe.control_image_processor = SD3CannyImageProcessor(vae_scale_factor=pipe.vae_scale_factor)
    return pipe


def _each(numbers):
    return numbers[0] if len(numbers) == 1 else numbers


def _pipeline_class(task=""):
    from .. import pipelines

    return getattr(pipelines, f"StableDiffusion3ControlNet{task}Pipeline")
