"""Control: the pictures that guide a call through ControlNets, how strongly, and at which steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import paddle
import paddle.nn.functional as F

from ...models import SD3ControlNetModel, SD3MultiControlNetModel, SD3Transformer2DModel
from ...models.controlnet_sd3 import add_residuals
from ...ops.shapes import cast
from ...utils.errors import InputError
from ...utils.images import read_pictures
from ..call_signature import Numbers, Pictures, PicturesOfEach
from .arguments import Tensor
from .denoising import PreparedSteps
from .latents import match_batch
from .tasks import Start, Task, read_picture

if TYPE_CHECKING:
    from .call import Call


@dataclasses.dataclass
class Control:
    """One ControlNet's part in a call.

    Attributes:
        hint: [B, C', H, W], what it reads beside the noisy latents.
        scale: weight of its residuals.
        start, end: it acts at the steps that lie within this part of them, 0 to 1.
        pooled: [1, B or copies * B, P] pooled text in place of the prompts'.
    """

    hint: paddle.Tensor
    scale: float
    start: float
    end: float
    pooled: paddle.Tensor | None = None

    def acts(self, step: int, steps: int) -> bool:
        """Whether ``step`` of so many ``steps`` lies between start and end."""
        return self.scale != 0 and step / steps >= self.start and (step + 1) / steps <= self.end


class Controls:
    """All of a call's :class:`Control`; :meth:`begin` makes what ``VelocityModel`` calls."""

    def __init__(self, parts: list[Control]):
        self.parts = parts

    def begin(
        self,
        controlnet: SD3ControlNetModel | SD3MultiControlNetModel,
        transformer: SD3Transformer2DModel,
        timesteps: paddle.Tensor,
    ) -> Callable[..., list[paddle.Tensor] | None]:
        """A callable ``(latents, transformer's input, step, condition) -> list of residuals, or None``.

        Args:
            controlnet: as many nets as there are parts.
            transformer: embeds latents for ControlNets that do not.
            timesteps: [n] fp32, of the whole loop.
        """
        nets = controlnet.nets if isinstance(controlnet, SD3MultiControlNetModel) else [controlnet]
        dtypes = [net.dtype for net in nets]  # which may be others than the transformer's
        guided = [
            (part, net, dtype, cast(part.hint, dtype), PreparedSteps(_preparation(net, dtype, part.pooled), timesteps))
            for part, net, dtype in zip(self.parts, nets, dtypes)
        ]

        def residuals(latents, read, step, condition):
            return add_residuals(
                [
                    cast(residual, latents.dtype)
                    for residual in net(
                        cast(latents if net.pos_embed is not None else transformer.pos_embed(read), dtype),
                        hint,
                        part.scale,
                        prepared=prepared(condition, step),
                        return_dict=False,
                    )[0]
                ]
                for part, net, dtype, hint, prepared in guided
                if part.acts(step, len(timesteps))
            )

        return residuals


def _preparation(net, dtype, given):
    """How ``net`` prepares a condition: with the pooled text that it was trained with."""

    def prepare(condition, timesteps):
        embeds, pooled = cast(condition.embeds, dtype), cast(condition.pooled, dtype)
        if net.config.force_zeros_for_pooled_projection:
            pooled = paddle.zeros_like(pooled)
        elif given is not None:
            pooled = _rows(cast(given, dtype), pooled.shape[0])
        return net.prepare(None if net.context_embedder is None else embeds, pooled, timesteps)

    return prepare


def _rows(tensor, rows):
    """``tensor`` with so many rows: repeated as a whole, or its last ones, as guidance batches are laid out."""
    return paddle.concat([tensor] * -(-rows // tensor.shape[0]))[-rows:]


class Controlled(Task):
    """A task with pictures that guide it.

    Args:
        task: what is drawn.
        control_image, controlnet_conditioning_scale, control_guidance_start, control_guidance_end,
            controlnet_pooled_projections, control_mask: arguments of the call.
    """

    def __init__(
        self,
        task: Task,
        control_image: PicturesOfEach,
        controlnet_conditioning_scale: Numbers,
        control_guidance_start: Numbers,
        control_guidance_end: Numbers,
        controlnet_pooled_projections: Tensor,
        control_mask: Pictures = None,
    ):
        self.task, self.control_image, self.control_mask = task, control_image, control_mask
        self.scale, self.pooled = controlnet_conditioning_scale, controlnet_pooled_projections
        self.interval = control_guidance_start, control_guidance_end

    def check(self, call: Call) -> None:
        pipe: Any = call.pipe
        self.task.check(call)
        pipe._check_components("controlnet")
        configs = controlnet_configs(pipe.controlnet)
        for config in configs:
            _check_fits(config, pipe.transformer.config)
        self._check_mask(configs)
        _processors(pipe.control_image_processor, len(configs))
        self.images = [read_picture("control_image", image, call) for image in self._images(len(configs))]
        if self.control_mask is not None:
            self.control_mask = read_pictures("control_mask", self.control_mask, 1)
        _each("controlnet_conditioning_scale", self.scale, len(configs))
        starts, ends = (
            _each(f"control_guidance_{name}", value, len(configs))
            for name, value in zip(("start", "end"), self.interval)
        )
        for start, end in zip(starts, ends):
            if start >= end:
                raise InputError(
                    f"`control_guidance_start` is {start} and `control_guidance_end` {end}; they are parts of the "
                    "steps: 0 <= start < end <= 1."
                )
        self._check_pooled(configs, call)

    def _check_mask(self, configs):
        """Each ControlNet that reads a mask has one, and a mask has a ControlNet that reads it."""
        extra = [config.extra_conditioning_channels for config in configs]
        if self.control_mask is None and any(extra):
            raise InputError(
                f"This ControlNet reads {max(extra)} channel beside the picture's: a mask. Use "
                "StableDiffusion3ControlNetInpaintingPipeline with `control_mask`."
            )
        if self.control_mask is not None and max(extra) != 1:
            raise InputError(
                f"`control_mask` is for ControlNets with extra_conditioning_channels=1, and this one has {max(extra)}. "
                "Use StableDiffusion3ControlNetPipeline."
            )

    def _check_pooled(self, configs, call):
        if self.pooled is None:
            return
        if all(config.force_zeros_for_pooled_projection for config in configs):
            raise InputError(
                "`controlnet_pooled_projections` has no effect: this ControlNet was trained without pooled text "
                "(force_zeros_for_pooled_projection). Leave it out."
            )
        rows, width = (1, call.batch, 2 * call.batch), configs[0].pooled_projection_dim
        if len(self.pooled.shape) != 2 or self.pooled.shape[0] not in rows or self.pooled.shape[1] != width:
            raise InputError(
                f"`controlnet_pooled_projections` has the shape {list(self.pooled.shape)}; it has to be [n, {width}], "
                f"n being 1, {call.batch} (the pictures) or {2 * call.batch} (negative prompts' first)."
            )

    def _images(self, count):
        """The picture, or pictures for the batch, of each ControlNet."""
        if self.control_image is None:
            raise InputError("A ControlNet needs a `control_image`. Pass one.")
        if count == 1:
            return [self.control_image]
        if not isinstance(self.control_image, (list, tuple)) or len(self.control_image) != count:
            raise InputError(f"`control_image` has to be a list of {count} pictures, one for each ControlNet.")
        return self.control_image

    def start(self, call: Call, timesteps: paddle.Tensor) -> Start:
        pipe: Any = call.pipe
        start = self.task.start(call, timesteps)
        configs = controlnet_configs(pipe.controlnet)
        count = len(configs)
        start.control = Controls(
            [
                Control(self._hint(call, config, processor, image), scale, first, last, self.pooled)
                for config, processor, image, scale, first, last in zip(
                    configs,
                    _processors(pipe.control_image_processor, count),
                    self.images,
                    _each("controlnet_conditioning_scale", self.scale, count),
                    *(_each("control_guidance", value, count) for value in self.interval),
                )
            ]
        )
        return start

    def _hint(self, call, config, processor, image):
        """What a ControlNet reads: latents of ``image``, and, where it reads a mask, what stays.

        The mean of the VAE's posterior, so that a call is the same whatever was drawn before.
        """
        pipe: Any = call.pipe
        pixels = processor.preprocess(image, call.height, call.width)
        reads_mask = config.extra_conditioning_channels == 1
        if pixels.shape[1] == pipe.latent_channels:
            if reads_mask:
                raise InputError("`control_image` holds latents, which cannot be masked. Pass pixels.")
            return match_batch(pixels, call, "control_image").astype(pipe.transformer.dtype)
        mask = None
        if reads_mask:
            mask = pipe.mask_processor.preprocess(self.control_mask, call.height, call.width).astype(pixels.dtype)
            if pixels.shape[0] != mask.shape[0]:
                pixels, mask = match_batch(pixels, call, "control_image"), match_batch(mask, call, "control_mask")
            pixels = paddle.where((mask > 0.5).expand_as(pixels), paddle.full_like(pixels, -1.0), pixels)
        with pipe.using("vae") as vae:
            latents = vae.encode(pixels.astype(vae.dtype)).latent_dist.mode()
            # trained without pooled text are the InstantX ControlNets, and they are without the shift too, but for
            # the inpainting one
            unshifted = config.force_zeros_for_pooled_projection and mask is None
            latents = latents * vae.config.scaling_factor if unshifted else vae.scale_latents(latents)
        if mask is not None:
            stays = 1 - F.interpolate(mask, size=latents.shape[2:], mode="nearest")
            latents = paddle.concat([latents, stays.astype(latents.dtype)], axis=1)
        return match_batch(latents, call, "control_image").astype(pipe.transformer.dtype)

    def finish(self, call, images):
        return self.task.finish(call, images)


def controlnet_configs(controlnet: SD3ControlNetModel | SD3MultiControlNetModel) -> list[Any]:
    """The configuration of each net."""
    return controlnet.config.get("nets") or [controlnet.config]


def _processors(processor, count):
    """A processor of control pictures for each of ``count`` ControlNets, from one for all or a list.

    Raises:
        InputError: a list of another length, or something that is no processor.
    """
    processors = list(processor) if isinstance(processor, (list, tuple)) else [processor] * count
    if len(processors) != count or not all(hasattr(one, "preprocess") for one in processors):
        raise InputError(
            f"`pipe.control_image_processor` has to be a processor such as VaeImageProcessor, or a list of {count}, "
            "one for each ControlNet."
        )
    return processors


def _each(name, value, count):
    """A number for each of ``count`` ControlNets, from one for all or a list.

    Raises:
        InputError: something else.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise InputError(
            f"`{name}` is {value!r}; it has to be a number, or a list of {count}, one for each ControlNet."
        )
    return values


def _check_fits(config, transformer):
    """The ControlNet was made for transformers like this one."""
    pairs = {
        "width (num_attention_heads * attention_head_dim)": lambda c: c.num_attention_heads * c.attention_head_dim,
        "patch_size": lambda c: c.patch_size,
        "pooled_projection_dim": lambda c: c.pooled_projection_dim,
    }
    if config.joint_attention_dim is not None:
        pairs["joint_attention_dim"] = lambda c: c.joint_attention_dim
    for name, of in pairs.items():
        if of(config) != of(transformer):
            raise InputError(
                f"The ControlNet's {name} is {of(config)}, the transformer's {of(transformer)}: it was trained for "
                "another model. Use the ControlNet of this one."
            )
