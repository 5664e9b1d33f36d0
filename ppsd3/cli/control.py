"""Draw pictures from a prompt and a picture that guides them (a ControlNet), as PNG files that hold the settings."""

from ..utils.errors import InputError
from .drawing import add_drawing_arguments, draw, prepare_call, take_settings
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
        help="scale pixels of the control picture as Stability AI's canny ControlNet for SD3.5-large needs them",
    )
    add_drawing_arguments(parser, *_pipeline_classes().values())


def read_defaults(parser, rest):
    take_settings(parser, rest, "control")


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
    classes = _pipeline_classes()
    pictures = ["control_image"]
    if arguments.control_mask is not None:
        task = "inpaint"
    elif arguments.image is not None:
        task, pictures = "img2img", ["image", "control_image"]
    else:
        task = "generate"
    call = prepare_call(arguments, classes[task], pictures, classes.values())
    if task == "inpaint":
        call["control_mask"] = call["control_mask"].convert("L")
    more = {"controlnet": nets, "canny_8b": arguments.canny_8b or None}
    draw(arguments, call, classes[task], "control", more, load=_load)


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


def _pipeline_classes():
    from .. import pipelines

    return {
        "generate": pipelines.StableDiffusion3ControlNetPipeline,
        "img2img": pipelines.StableDiffusion3ControlNetImg2ImgPipeline,
        "inpaint": pipelines.StableDiffusion3ControlNetInpaintingPipeline,
    }
