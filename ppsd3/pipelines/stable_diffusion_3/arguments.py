"""What a call of each pipeline takes: every argument is declared once, with its type, default and meaning.

A group holds arguments that stand next to one another in diffusers' signatures. The arguments of a task are a dataclass
over groups, **listed from the last to the first**: a dataclass takes its fields from the bases in that order, so the
fields, and with them the signature of the pipeline's call, stand in diffusers' order.

Legend: B prompts, n ``num_images_per_prompt``, C latent channels, L text tokens, D and P widths of the text.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Callable, Literal, Optional, Union

import paddle

from ...schedulers.flow_scheduler import MOST_STEPS
from ...utils.checking import FINITE, Range
from ..call_signature import Doc, Numbers, Pictures, PicturesOfEach, Texts
from .guidance import Guidance, Scale

# What is declared for several calls: a type, and the range of the numbers in it.
Tensor = Annotated[Optional[paddle.Tensor], FINITE]
Part = Range(0, 1)
Pixels = Annotated[Optional[int], Range(1)]
Copies = Annotated[int, Range(1, 1000)]
ClipSkip = Annotated[Optional[int], Range(0)]
SequenceLength = Annotated[int, Range(2, 512)]  # a token and the end; T5 was trained on no longer ones
Generator = Any  # a TorchGenerator, a Paddle generator, a list of them, or None
StepCallback = Optional[
    Callable[[Any, int, paddle.Tensor, dict[str, paddle.Tensor]], Optional[dict[str, paddle.Tensor]]]
]


# Groups of arguments


@dataclass
class Prompts:
    prompt: Annotated[Texts, Doc("what to draw, one text or B; for CLIP-L, and for the others without a text.")] = None
    prompt_2: Annotated[Texts, Doc("the prompt for CLIP-G. Default: `prompt`.")] = None
    prompt_3: Annotated[Texts, Doc("the prompt for T5. Default: `prompt`.")] = None


@dataclass
class NegativePrompts:
    negative_prompt: Annotated[
        Texts, Doc('what to move away from, one text or B. Default: "". Without guidance it has no effect.')
    ] = None
    negative_prompt_2: Annotated[Texts, Doc("the negative prompt for CLIP-G. Default: `negative_prompt`.")] = None
    negative_prompt_3: Annotated[Texts, Doc("the negative prompt for T5. Default: `negative_prompt`.")] = None


@dataclass
class PromptEmbeds:
    prompt_embeds: Annotated[Tensor, Doc("[B, L, D], what `encode_prompt` returns, in place of `prompt`.")] = None
    negative_prompt_embeds: Annotated[Tensor, Doc("[B, L, D], in place of `negative_prompt`.")] = None
    pooled_prompt_embeds: Annotated[Tensor, Doc("[B, P], goes with `prompt_embeds`.")] = None
    negative_pooled_prompt_embeds: Annotated[Tensor, Doc("[B, P], goes with `negative_prompt_embeds`.")] = None


@dataclass
class Size:
    height: Annotated[
        Pixels, Doc("pixels, a multiple of 16. Default: the size that the transformer was trained for.")
    ] = None
    width: Annotated[Pixels, Doc("pixels, as `height`.")] = None


@dataclass
class Picture:
    image: Annotated[
        Pictures,
        FINITE,
        Doc(
            "the picture to begin with, resized to `height` and `width`.",
            forms="A PIL picture, an array [H, W, 3] or [B, H, W, 3] (bool, uint8, uint16, floats in [0, 1]) or a "
            "tensor [B, 3, H, W] (these, or in [-1, 1] with negative values), or scaled latents [B, C, H/8, W/8], or a "
            "list: one for all, or one for each prompt or each picture drawn. What is transparent is white.",
        ),
    ] = None


@dataclass
class Strength:
    strength: Annotated[
        float,
        Part,
        Doc(
            "0 to 1, the part of the steps that is done, and so how far the result may go from `image`; 1 begins with "
            "pure noise."
        ),
    ] = 0.6


@dataclass
class Mask:
    mask_image: Annotated[
        Pictures,
        FINITE,
        Doc(
            "of the size of `image`: white (1) is drawn anew, black (0) stays, grey is rounded.",
            "--mask",
            forms="A PIL picture, an array [H, W] or [B, H, W] or a tensor [B, 1, H, W] of bool, uint8 or floats in "
            "[0, 1], or a list. Transparent parts are refused.",
        ),
    ] = None
    masked_image_latents: Annotated[
        Tensor,
        Doc(
            "[B, C, H/8, W/8], for a transformer of 33 channels: the latents, not yet scaled, of `image` with the mask "
            "cut out. Default: made from the two."
        ),
    ] = None


@dataclass
class MaskCrop:
    padding_mask_crop: Annotated[
        Optional[int],
        Range(0),
        Doc(
            "cuts out what the mask marks with so many pixels around it, draws that part at full size and puts it "
            "back, for small details of large PIL pictures."
        ),
    ] = None


@dataclass
class Steps:
    num_inference_steps: Annotated[
        int,
        Range(1, MOST_STEPS),
        Doc(
            "denoising steps; more of them follow the flow more exactly and take longer.",
            "--steps",
            of_checkpoint=True,
        ),
    ] = 28
    sigmas: Annotated[
        Optional[list[float]],
        Part,
        Doc("noise levels of the steps before the scheduler's shift; their number replaces `num_inference_steps`."),
    ] = None
    guidance_scale: Annotated[
        Scale,
        Doc(
            "how far to move from the negative prompt's picture; 1 or less is no guidance, in half the time.",
            of_checkpoint=True,
        ),
    ] = 7.0


@dataclass
class Batch:
    num_images_per_prompt: Annotated[
        Copies, Doc("n, pictures for each prompt, next to one another in the result.", "--num-images")
    ] = 1
    generator: Annotated[
        Generator,
        Doc(
            "where the noise comes from: a TorchGenerator (diffusers' noise on a CPU), a Paddle generator, a list of "
            "one for each picture, or None for Paddle's global one."
        ),
    ] = None
    latents: Annotated[
        Tensor, Doc("[B * n, C, H/8, W/8], the latents to start from, in place of the generator's noise.")
    ] = None


@dataclass
class PicturePrompt:
    ip_adapter_image: Annotated[
        Pictures,
        FINITE,
        Doc(
            "a picture as a prompt, for an IP-adapter.",
            forms="What `encode_image` takes: one for all, or one for each prompt or each picture drawn.",
        ),
    ] = None
    ip_adapter_image_embeds: Annotated[
        Union[paddle.Tensor, list[paddle.Tensor], None],
        FINITE,
        Doc(
            "[b, T, E], with guidance [2 * b, T, E] in the order [negative, positive]: what "
            "`prepare_ip_adapter_image_embeds` returns, in place of the picture."
        ),
    ] = None


@dataclass
class OutputType:
    output_type: Annotated[
        Literal["pil", "np", "pt", "pd", "latent"],
        Doc('"pil", "np" [B, H, W, 3], "pt" or "pd" [B, 3, H, W], all in [0, 1], or "latent" [B, C, H/8, W/8].', None),
    ] = "pil"


@dataclass
class Options:
    return_dict: Annotated[
        bool, Doc("return a StableDiffusion3PipelineOutput, or else a tuple of its `images`.", None)
    ] = True
    joint_attention_kwargs: Annotated[
        Optional[dict[str, Any]],
        Doc('arguments of the attention processors, and "scale", a factor of the weight of all LoRA layers.'),
    ] = None
    clip_skip: Annotated[
        ClipSkip, Doc("how many more of CLIP's last layers to leave out, for the positive prompts.")
    ] = None
    callback_on_step_end: Annotated[
        StepCallback,
        Doc(
            "(pipeline, step, timestep, tensors) -> dict after each step; what the dict holds replaces the tensor of "
            "that name. It may set `pipeline._interrupt = True` to stop and `pipeline._guidance_scale`."
        ),
    ] = None
    callback_on_step_end_tensor_inputs: Annotated[
        Optional[list[str]],
        Doc(
            "which of `latents`, `prompt_embeds`, `pooled_prompt_embeds` and the task's own tensors are in `tensors`; "
            "with guidance prompts are [negative, positive]. `negative_prompt_embeds` and "
            "`negative_pooled_prompt_embeds` are the first halves, None without guidance.",
            None,
        ),
    ] = dataclasses.field(default_factory=lambda: ["latents"])
    max_sequence_length: Annotated[SequenceLength, Doc("tokens that T5 gets, up to 512.")] = 256


@dataclass
class SkipLayers:
    skip_guidance_layers: Annotated[
        Optional[list[int]], Range(0), Doc("layers to leave out for skip-layer guidance, e.g. 7 8 9 for SD3.5-medium.")
    ] = None
    skip_layer_guidance_scale: Annotated[Scale, Doc("weight of the skip-layer guidance.")] = 2.8
    skip_layer_guidance_stop: Annotated[Scale, Doc("part of the steps, 0 to 1, at which it stops.")] = 0.2
    skip_layer_guidance_start: Annotated[Scale, Doc("part of the steps, 0 to 1, at which it starts.")] = 0.01


@dataclass
class PerturbedAttention:
    pag_scale: Annotated[
        Scale, Doc("weight of the perturbed-attention guidance, 0 for none; it acts without `guidance_scale` too.")
    ] = 3.0
    pag_adaptive_scale: Annotated[Scale, Doc("weight lost for each unit of 1000 - timestep.")] = 0.0


@dataclass
class Shift:
    mu: Annotated[
        Optional[float],
        Range(-50, 50),
        Doc("shift for a scheduler with `use_dynamic_shifting`. Default: from the size of the picture."),
    ] = None


@dataclass
class OwnTimesteps:
    timesteps: Annotated[
        Optional[list[float]],
        Range(0),
        Doc(
            "noise levels of the steps in units of 1000, from high to low, where the scheduler takes them; their "
            "number replaces `num_inference_steps`. The scheduler shifts the sigmas made from them: see `sigmas`."
        ),
    ] = None


@dataclass
class Guiding:
    guidance: Annotated[
        Optional[Guidance],
        Doc("an object such as ClassifierFreeGuidance(7.0), in place of `guidance_scale` and the like."),
    ] = None


@dataclass
class ControlInterval:
    control_guidance_start: Annotated[
        Numbers,
        Part,
        Doc("part of the steps, 0 to 1, at which a ControlNet starts; one number or one each.", "--control-start"),
    ] = 0.0
    control_guidance_end: Annotated[
        Numbers, Part, Doc("part of the steps, 0 to 1, at which it stops; one number or one each.", "--control-end")
    ] = 1.0


@dataclass
class ControlPicture:
    control_image: Annotated[
        PicturesOfEach,
        FINITE,
        Doc(
            "what guides the drawing, e.g. edges; one for each ControlNet.",
            forms="As `image` of other tasks: a PIL picture, an array, a tensor, or scaled latents [b, C, H/8, W/8], "
            "one for all or one for each prompt.",
        ),
    ] = None


@dataclass
class ControlMask:
    control_mask: Annotated[
        Pictures,
        FINITE,
        Doc(
            "of the size of `control_image`: white (1) is drawn anew, black (0) stays. Of several ControlNets those "
            "read it that were trained with one.",
            "--mask",
            forms="As `mask_image` of inpainting.",
        ),
    ] = None


@dataclass
class ControlWeight:
    controlnet_conditioning_scale: Annotated[
        Numbers,
        Range(-10_000, 10_000),
        Doc("weight of a ControlNet's residuals; one number or one each.", "--control-scale"),
    ] = 1.0
    controlnet_pooled_projections: Annotated[
        Tensor,
        Doc(
            "[1 or B * n or 2 * B * n, P], pooled text for the ControlNet in place of the prompts'; refused for those "
            "trained without."
        ),
    ] = None


# Arguments of each task, groups from the last to the first


@dataclass
class Conditioning(PromptEmbeds, Batch, NegativePrompts):
    pass


@dataclass
class Guided(OwnTimesteps, Guiding, Shift, Options, OutputType, PicturePrompt, Conditioning):
    pass


@dataclass
class TextToImageArguments(
    OwnTimesteps, Guiding, Shift, SkipLayers, Options, OutputType, PicturePrompt, Conditioning, Steps, Size, Prompts
):
    """Of :class:`StableDiffusion3Pipeline`."""


@dataclass
class ImageToImageArguments(
    OwnTimesteps,
    Guiding,
    Shift,
    Options,
    PicturePrompt,
    OutputType,
    Conditioning,
    Steps,
    Strength,
    Picture,
    Size,
    Prompts,
):
    """Of :class:`StableDiffusion3Img2ImgPipeline`."""

    num_inference_steps: int = 50


@dataclass
class InpaintingArguments(Guided, Steps, Strength, MaskCrop, Size, Mask, Picture, Prompts):
    """Of :class:`StableDiffusion3InpaintPipeline`."""

    num_inference_steps: int = 50


@dataclass
class PAGTextToImageArguments(
    OwnTimesteps, PicturePrompt, Shift, PerturbedAttention, Options, OutputType, Conditioning, Steps, Size, Prompts
):
    """Of :class:`StableDiffusion3PAGPipeline`."""


@dataclass
class PAGImageToImageArguments(
    OwnTimesteps,
    PicturePrompt,
    Shift,
    PerturbedAttention,
    Options,
    OutputType,
    Conditioning,
    Steps,
    Strength,
    Picture,
    Size,
    Prompts,
):
    """Of :class:`StableDiffusion3PAGImg2ImgPipeline`."""

    num_inference_steps: int = 50


@dataclass
class ControlArguments(Guided, ControlWeight, ControlPicture, ControlInterval, Steps, Size, Prompts):
    """Of :class:`StableDiffusion3ControlNetPipeline`."""


@dataclass
class ControlImageToImageArguments(
    Guided, ControlWeight, ControlPicture, ControlInterval, Steps, Strength, Picture, Size, Prompts
):
    """Of :class:`StableDiffusion3ControlNetImg2ImgPipeline`."""

    num_inference_steps: int = 50


@dataclass
class ControlInpaintingArguments(
    Guided, ControlWeight, ControlMask, ControlPicture, ControlInterval, Steps, Size, Prompts
):
    """Of :class:`StableDiffusion3ControlNetInpaintingPipeline`."""


# What every call has, whatever its task.
CallArguments = Union[
    TextToImageArguments,
    ImageToImageArguments,
    InpaintingArguments,
    PAGTextToImageArguments,
    PAGImageToImageArguments,
    ControlArguments,
    ControlImageToImageArguments,
    ControlInpaintingArguments,
]
