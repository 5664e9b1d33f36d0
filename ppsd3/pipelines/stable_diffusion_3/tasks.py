"""The tasks: what each adds to the loop that all share.

They differ in where the latents start, how many of the timesteps are left, what the transformer reads beside the
latents, and what happens after each step:

==============  ============================  =========  =====================  =============================
task            starting latents              timesteps  extra channels         after each step
==============  ============================  =========  =====================  =============================
TextToImage     noise                         all        none                   nothing
ImageToImage    picture and noise, mixed      the tail   none                   nothing
Inpainting, 16  picture and noise, mixed      the tail   none                   the picture outside the mask
Inpainting, 33  picture and noise, mixed      the tail   mask, masked picture   nothing
==============  ============================  =========  =====================  =============================

"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import paddle
import paddle.nn.functional as F
from PIL import Image

from ...utils.errors import InputError
from ...utils.images import read_pictures
from ..call_signature import Pictures
from .arguments import Tensor
from .denoising import keep_latents
from .latents import encode_picture, match_batch, mix, prepare_latents, skip_encoding

if TYPE_CHECKING:
    from .call import Call
    from .control import Controls


@dataclasses.dataclass
class Start:
    """How a task begins.

    Attributes:
        latents: [B, C, H, W].
        timesteps: [n] fp32, those that are left.
        extra_channels: () -> Tensor [B, c, H, W] that the transformer reads after the latents.
        after_step: (latents, step) -> latents.
        tensors: name -> tensor, what a callback may see and replace beside latents and condition.
        control: what ControlNets add, see ``control.py``.
    """

    latents: paddle.Tensor
    timesteps: paddle.Tensor
    extra_channels: Callable[[], paddle.Tensor] | None = None
    after_step: Callable[[paddle.Tensor, int], paddle.Tensor] = keep_latents
    tensors: dict[str, paddle.Tensor] = dataclasses.field(default_factory=dict)
    control: Controls | None = None


class Task(abc.ABC):
    """Base of the tasks: it refuses nothing and changes no picture. A task serves one call."""

    def check(self, call: Call) -> None:  # noqa: B027 (some tasks refuse nothing)
        """Refuses arguments of the call before any work, and reads its pictures."""

    @abc.abstractmethod
    def start(self, call: Call, timesteps: paddle.Tensor) -> Start:
        """The latents that the loop starts from, and which of the timesteps [n] are left."""

    def finish(self, call: Call, images: Any) -> Any:
        """The result, from what ``VaeImageProcessor.postprocess`` made."""
        return images


class TextToImage(Task):
    """From noise."""

    def start(self, call, timesteps):
        pipe = call.pipe
        shape = call.latents_shape(pipe.transformer.config.in_channels)
        return Start(
            prepare_latents(shape, pipe.transformer.dtype, call.arguments.generator, call.arguments.latents), timesteps
        )


class ImageToImage(Task):
    """From a picture with noise on it, at ``strength`` of the way to pure noise."""

    def __init__(self, image: Pictures, strength: float):
        self.image, self.strength = image, strength

    def check(self, call):
        if (self.image is None) == (call.arguments.latents is None):
            raise InputError("Pass either `image`, or the `latents` to start from, which have noise on them already.")
        check_strength(self.strength, call)
        if self.image is not None:
            self.image = read_picture("image", self.image, call)

    def start(self, call, timesteps):
        pipe = call.pipe
        timesteps = remaining_timesteps(call, timesteps, self.strength)
        shape = call.latents_shape(pipe.transformer.config.in_channels)
        if call.arguments.latents is not None:
            return Start(prepare_latents(shape, pipe.transformer.dtype, latents=call.arguments.latents), timesteps)
        pixels = pipe.image_processor.preprocess(self.image, call.height, call.width)
        if isinstance(call.arguments.generator, (list, tuple)):  # each draws its picture's posterior
            pixels = match_batch(pixels, call, "image")
        clean = encode_picture(call, pixels).astype(pipe.transformer.dtype)
        noise = prepare_latents(shape, pipe.transformer.dtype, call.arguments.generator)
        return Start(mix(call.scheduler, clean, timesteps[:1], noise), timesteps)


class Inpainting(Task):
    """What the mask marks (white) is drawn anew, the rest stays."""

    def __init__(
        self,
        image: Pictures,
        mask_image: Pictures,
        masked_image_latents: Tensor,
        padding_mask_crop: int | None,
        strength: float,
    ):
        self.image, self.mask_image, self.masked_image_latents = image, mask_image, masked_image_latents
        self.padding_mask_crop, self.strength = padding_mask_crop, strength
        self._crop: tuple[int, int, int, int] | None = None

    def check(self, call):
        pipe = call.pipe
        check_strength(self.strength, call)
        channels, own = pipe.transformer.config.in_channels, pipe.latent_channels
        if channels not in (own, 2 * own + 1):
            raise InputError(
                f"This transformer reads {channels} channels; inpainting takes one of {own} (any text-to-image model) "
                f"or of {2 * own + 1} (latents, mask and masked picture)."
            )
        if self.image is None or self.mask_image is None:
            raise InputError("Inpainting needs `image` and `mask_image`. Pass both.")
        self.image = read_picture("image", self.image, call)
        self.mask_image = read_pictures("mask_image", self.mask_image, 1)
        if self.masked_image_latents is not None and channels == own:
            raise InputError(
                f"`masked_image_latents` are for transformers of {2 * own + 1} channels, and this one reads {own}. "
                "Leave them out."
            )
        if self.padding_mask_crop is not None:
            _check_crop(self.image, self.mask_image, call)

    def start(self, call, timesteps):
        pipe = call.pipe
        timesteps = remaining_timesteps(call, timesteps, self.strength)
        dtype, own = pipe.transformer.dtype, pipe.latent_channels
        shape = call.latents_shape(own)
        pixels, mask = self._pictures(call)
        reads_mask = pipe.transformer.config.in_channels != own
        if reads_mask and pixels.shape[1] == own and self.masked_image_latents is None:
            raise InputError(
                "`image` holds latents, which cannot be masked. Pass `masked_image_latents` too, or pixels."
            )

        starts_from_picture = self.strength < 1 and call.arguments.latents is None
        clean = encode_picture(call, pixels).astype(dtype) if starts_from_picture or not reads_mask else None
        latents = noise = prepare_latents(shape, dtype, call.arguments.generator, call.arguments.latents)
        if starts_from_picture and clean is not None:
            latents = mix(call.scheduler, clean, timesteps[:1], noise)
        small = match_batch(F.interpolate(mask, size=shape[2:], mode="nearest"), call, "mask_image").astype(dtype)
        if reads_mask:
            tensors = {"mask": small, "masked_image_latents": self._masked_latents(call, pixels, mask)}

            def extra_channels():
                return paddle.concat([tensors["mask"], tensors["masked_image_latents"]], axis=1)

            return Start(latents, timesteps, extra_channels, tensors=tensors)

        assert clean is not None  # as no mask is read
        if pixels.shape[1] != own:
            skip_encoding(call, max(pixels.shape[0], mask.shape[0]))  # of the masked image
        tensors = {"mask": small}

        def keep_outside(latents, step):
            last = step == len(timesteps) - 1
            outside = clean if last else mix(call.scheduler, clean, timesteps[step + 1 : step + 2], noise)
            return (1 - tensors["mask"]) * outside + tensors["mask"] * latents

        return Start(latents, timesteps, after_step=keep_outside, tensors=tensors)

    def _pictures(self, call):
        """-> pixels [b, 3, H, W] in [-1, 1], mask [b', 1, H, W] of 0 and 1; of the part to be drawn."""
        pipe = call.pipe
        options = {}
        if self.padding_mask_crop is not None:
            region = pipe.mask_processor.get_crop_region(
                self.mask_image, call.width, call.height, self.padding_mask_crop
            )
            self._crop = region
            options = {"crops_coords": region, "resize_mode": "fill"}
        return (
            pipe.image_processor.preprocess(self.image, call.height, call.width, **options),
            pipe.mask_processor.preprocess(self.mask_image, call.height, call.width, **options),
        )

    def _masked_latents(self, call, pixels, mask):
        pipe = call.pipe
        if self.masked_image_latents is not None:  # as the VAE gives them, not yet scaled
            with pipe.using("vae") as vae:
                scaled = vae.scale_latents(self.masked_image_latents)
            return match_batch(scaled, call, "masked_image_latents").astype(pipe.transformer.dtype)
        if 1 not in (pixels.shape[0], mask.shape[0]):
            pixels, mask = match_batch(pixels, call, "image"), match_batch(mask, call, "mask_image")
        masked = pixels * (mask < 0.5).astype(pixels.dtype)
        return encode_picture(call, masked).astype(pipe.transformer.dtype)

    def finish(self, call, images):
        pipe = call.pipe
        if self._crop is None:
            return images
        assert isinstance(self.image, Image.Image) and isinstance(self.mask_image, Image.Image)  # checked with the crop
        overlay = pipe.image_processor.apply_overlay
        return [overlay(self.mask_image, self.image, image, self._crop) for image in images]


def read_picture(name: str, image: Any, call: Call) -> Any:
    """The argument ``name`` as :func:`read_pictures` gives it: colours, or latents of the pipeline's VAE."""
    return read_pictures(name, image, 3, call.pipe.latent_channels)


def check_strength(strength: float, call: Call) -> None:
    """``strength`` leaves at least one step.

    Raises:
        InputError
    """
    if 0 < call.steps <= _skipped(call, strength):  # an empty list of steps is refused as such
        raise InputError(
            f"`strength` {strength} of {call.steps} steps leaves none to do. Raise strength or num_inference_steps."
        )


def _skipped(call, strength):
    return int(max(call.steps - min(call.steps * strength, call.steps), 0))


def remaining_timesteps(call: Call, timesteps: paddle.Tensor, strength: float) -> paddle.Tensor:
    """The last ``strength`` of the steps; the scheduler is told where they begin."""
    first = _skipped(call, strength) * getattr(call.scheduler, "order", 1)
    if hasattr(call.scheduler, "set_begin_index"):
        call.scheduler.set_begin_index(first)
    return timesteps[first:]


def _check_crop(image, mask_image, call):
    if not isinstance(image, Image.Image) or not isinstance(mask_image, Image.Image):
        raise InputError("`padding_mask_crop` cuts a part out of a PIL picture and puts it back. Pass PIL pictures.")
    if image.size != mask_image.size:
        raise InputError(f"`image` is {image.size} pixels and `mask_image` {mask_image.size}. Make them of one size.")
    if call.arguments.output_type != "pil":
        raise InputError("`padding_mask_crop` gives PIL pictures only. Leave output_type at 'pil'.")
    if mask_image.convert("L").getbbox() is None:
        raise InputError("`mask_image` is all black, so there is nothing to cut out. White marks what is drawn anew.")
