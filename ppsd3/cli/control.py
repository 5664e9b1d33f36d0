"""Draw pictures from a prompt and a picture that guides them (a ControlNet), as PNG files that hold the settings."""

from typing import Any

from ..utils.errors import InputError
from .drawing import add_drawing_arguments, draw, prepare_call
from .options import load_pipeline


def add_arguments(parser):
    parser.add_argument(
        "--controlnet",
        metavar="MODEL",
        action="append",
        help="directory, hub id, .safetensors file or the bundled shapes-silhouette; several are added",
    )
    parser.add_argument(
        "--canny-8b",
        action="store_true",
        help="scale pixels of control pictures as Stability AI's canny ControlNet for SD3.5-large needs them",
    )
    parser.add_argument(
        "--control-processor",
        metavar="NAME",
        choices=("plain", "canny-8b"),
        action="append",
        help="of several ControlNets, how each one's pixels are scaled: plain or canny-8b (as --canny-8b does for all)",
    )
    add_drawing_arguments(parser, *_pipeline_classes().values())


def run(arguments):
    nets, paths = arguments.controlnet or (), arguments.control_image or ()
    if not nets or len(nets) != len(paths):
        raise InputError(
            f"There are {len(nets)} --controlnet and {len(paths)} --control-image. Give one or more, in pairs."
        )
    if arguments.control_mask is not None and arguments.image is not None:
        raise InputError(
            "Both --mask and --image are given. An inpainting ControlNet begins with noise: leave one out."
        )
    _processors(arguments, len(nets))
    classes = _pipeline_classes()
    pictures = ["control_image"]
    if arguments.control_mask is not None:
        task = "inpaint"
    elif arguments.image is not None:
        task, pictures = "img2img", ["image", "control_image"]
    else:
        task = "generate"
    call = prepare_call(arguments, classes[task], pictures, classes.values())
    more = {
        "controlnet": nets,
        "canny_8b": arguments.canny_8b or None,
        "control_processor": arguments.control_processor,
    }
    draw(arguments, call, classes[task], "control", more, load=_load)


def load_controlnets(arguments: Any) -> Any:
    """The ControlNet that ``arguments.controlnet`` names, in ``arguments.dtype``; a list if there are several."""
    from ..models import SD3ControlNetModel

    options: dict[str, Any] = {
        "paddle_dtype": arguments.dtype,
        "storage_dtype": "float16" if arguments.on_demand else None,
    }
    nets = [
        SD3ControlNetModel.from_single_file(model, **options)
        if model.endswith(".safetensors")
        else SD3ControlNetModel.from_pretrained(model, **options)
        for model in arguments.controlnet
    ]
    return nets[0] if len(nets) == 1 else nets


def _load(arguments, quiet, pipeline_class):
    from ..pipelines import SD3CannyImageProcessor, VaeImageProcessor

    nets = load_controlnets(arguments)
    pipe = load_pipeline(arguments, quiet, pipeline_class, controlnet=nets)
    classes = {"plain": VaeImageProcessor, "canny-8b": SD3CannyImageProcessor}
    pipe.control_image_processor = [
        classes[name](**pipe.image_processor.config) for name in _processors(arguments, len(arguments.controlnet))
    ]
    return pipe


def _processors(arguments, count):
    """The name of the processor of each ControlNet's pictures."""
    names = arguments.control_processor
    if names is None:
        return ["canny-8b" if arguments.canny_8b else "plain"] * count
    if arguments.canny_8b or len(names) != count:
        raise InputError(
            f"--control-processor is given {len(names)} times{' beside --canny-8b' * arguments.canny_8b} for {count} "
            "ControlNets. Give one for each, or --canny-8b alone for all."
        )
    return names


def _pipeline_classes():
    from .. import pipelines

    return {
        "generate": pipelines.StableDiffusion3ControlNetPipeline,
        "img2img": pipelines.StableDiffusion3ControlNetImg2ImgPipeline,
        "inpaint": pipelines.StableDiffusion3ControlNetInpaintingPipeline,
    }
