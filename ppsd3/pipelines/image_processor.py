"""Pictures as people hold them (PIL, arrays) <-> tensors as the VAE takes them ([B, 3, H, W] in [-1, 1])."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import paddle
import paddle.nn.functional as F
from PIL import Image

from ..configuration_utils import ConfigMixin, register_to_config
from ..utils.checking import Range, checks_arguments
from ..utils.errors import ConfigError, InputError
from ..utils.images import read_pictures
from .call_signature import Pictures

Box = tuple[int, int, int, int]  # x1, y1, x2, y2
Pixels = Annotated[int, Range(1, 2**20)]
ResizeMode = Literal["default", "fill", "crop"]
OutputType = Literal["pil", "np", "pt", "pd", "latent"]

Array = Annotated[np.ndarray, Range(axes=(3, 4))]
Tensor = Annotated[paddle.Tensor, Range(axes=(4,))]


class VaeImageProcessor(ConfigMixin):
    """Counterpart of diffusers' class of the same name, with the same rounding.

    Args:
        do_resize: bring pictures to the asked size, or down to a multiple of ``vae_scale_factor``.
        vae_scale_factor: pixels per latent.
        vae_latent_channels: a tensor of that many channels is taken for latents and left as it is.
        resample: PIL filter for pictures: ``"lanczos"``, ``"bicubic"``, ``"bilinear"``, ``"nearest"``,
            ``"box"`` or ``"hamming"``. Arrays and tensors are resized by nearest neighbour.
        do_normalize: map [0, 1] to [-1, 1] and back.
        do_binarize: 0 below 0.5, else 1 (masks).
        do_convert_rgb, do_convert_grayscale: convert PIL pictures; at most one of the two.
    """

    config_name: ClassVar[str] = "image_processor_config.json"

    @register_to_config
    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        vae_latent_channels: int = 4,
        resample: str = "lanczos",
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ):
        if do_convert_rgb and do_convert_grayscale:
            raise ConfigError("do_convert_rgb and do_convert_grayscale exclude each other. Set one of them.")

    @checks_arguments
    def preprocess(
        self,
        image: Pictures,
        height: Pixels | None = None,
        width: Pixels | None = None,
        resize_mode: ResizeMode = "default",
        crops_coords: Box | None = None,
    ) -> paddle.Tensor:
        """Pictures -> tensor [B, c, H, W] fp32, in [-1, 1] with ``do_normalize``, else in [0, 1].

        Args:
            image: PIL pictures, arrays [H, W, c] or [B, H, W, c], or tensors [c, H, W] or [B, c, H, W] of Paddle or
                torch, one or a list of one kind; with ``do_convert_grayscale`` also [H, W] or [B, H, W]. Floats are in
                [0, 1]; tensors with a value below 0 count as normalized already. Other values, modes of PIL,
                transparency: see :mod:`ppsd3.utils.images`.
            height, width: pixels; None: the picture's own, down to a multiple of the scale factor.
            resize_mode: as in :meth:`resize`; "fill" and "crop" are for PIL pictures.
            crops_coords: x1, y1, x2, y2 of the part of PIL pictures to take.

        Raises:
            InputError: another type, other levels, an empty list, different sizes, or another ``resize_mode``.
        """
        channels = 1 if self.config.do_convert_grayscale else 3 if self.config.do_convert_rgb else None
        images: Any = read_pictures("image", image, channels, self.config.vae_latent_channels)
        images = images if isinstance(images, list) else [images]
        self._check_resizing(images, resize_mode, crops_coords)
        if crops_coords is not None:
            images = [picture.crop(crops_coords) for picture in images]
        pixels = self._to_tensor(images, height, width, resize_mode)
        if pixels.shape[1] == self.config.vae_latent_channels and isinstance(images[0], paddle.Tensor):
            return pixels
        if self.config.do_resize:
            pixels = self._resize_tensor(pixels, height, width)
        if self.config.do_normalize and not float(pixels.min()) < 0:
            pixels = self.normalize(pixels)
        if self.config.do_binarize:
            pixels = (pixels >= 0.5).astype(pixels.dtype)
        return pixels

    @checks_arguments
    def postprocess(
        self, image: paddle.Tensor, output_type: OutputType = "pil", do_denormalize: list[bool] | None = None
    ) -> list[Image.Image] | np.ndarray | paddle.Tensor:
        """Tensor [B, 3, H, W] in about [-1, 1] -> what ``output_type`` says.

        Args:
            output_type: ``"pil"`` list of pictures, ``"np"`` array [B, H, W, 3] fp32 in [0, 1], ``"pt"`` or
                ``"pd"`` tensor [B, 3, H, W] in [0, 1], ``"latent"`` the tensor as it is.
            do_denormalize: per picture; None: as ``do_normalize`` says.

        Raises:
            InputError: another ``output_type``, or no tensor.
        """
        if output_type == "latent":
            return image
        if image.ndim != 4:
            raise InputError(f"`image` has the shape {list(image.shape)}; it has to be [B, C, H, W].")
        flags = do_denormalize or [self.config.do_normalize] * image.shape[0]
        image = paddle.stack([self.denormalize(row) if flag else row for row, flag in zip(image, flags)])
        if output_type in ("pt", "pd"):
            return image
        array = image.transpose([0, 2, 3, 1]).astype("float32").numpy()
        return array if output_type == "np" else _to_pil(array)

    @checks_arguments
    def resize(
        self, picture: Image.Image, height: Pixels, width: Pixels, resize_mode: ResizeMode = "default"
    ) -> Image.Image:
        """A PIL picture in another size.

        Args:
            height, width: pixels.
            resize_mode: "default" stretches; "fill" keeps the proportions, all of the picture, and repeats its
                edges beside it; "crop" keeps the proportions and cuts off what does not fit.
        """
        resample = _filter(self.config.resample)
        if resize_mode == "default":
            return picture.resize((width, height), resample=resample)
        # The side by which the picture fits is exact, the other one is rounded down.
        by_width = (width / height < picture.width / picture.height) == (resize_mode == "fill")
        inner = (
            (width, picture.height * width // picture.width)
            if by_width
            else (picture.width * height // picture.height, height)
        )
        return _centred(picture.resize(inner, resample=resample), width, height, resize_mode == "fill")

    @staticmethod
    @checks_arguments
    def blur(picture: Image.Image, blur_factor: Annotated[float, Range(0, 1000)] = 4) -> Image.Image:
        """A PIL picture (a mask with hard edges, mostly) blurred by a Gaussian of ``blur_factor`` pixels."""
        from PIL import ImageFilter

        return read_pictures("picture", picture, None).filter(ImageFilter.GaussianBlur(blur_factor))

    @staticmethod
    @checks_arguments
    def get_crop_region(
        mask_image: Image.Image, width: Pixels, height: Pixels, pad: Annotated[int, Range(0)] = 0
    ) -> Box:
        """The part of a picture around what a mask marks, in the proportions of ``width`` and ``height``.

        Args:
            mask_image: all but black is marked.
            width, height: of the picture that is to be drawn.
            pad: pixels to add on each side.

        Returns:
            (x1, y1, x2, y2): inside of the mask's picture; where that is too narrow, in other proportions.

        Raises:
            InputError: nothing is marked.
        """
        mask_image = read_pictures("mask_image", mask_image, 1)
        box = mask_image.convert("L").getbbox()
        if box is None:
            raise InputError("The mask is all black, so there is no region to cut out. White marks what is drawn anew.")
        x1, y1 = (max(start - pad, 0) for start in box[:2])
        x2, y2 = (min(end + pad, size) for end, size in zip(box[2:], mask_image.size))
        wanted = width / height
        if (x2 - x1) / (y2 - y1) > wanted:
            y1, y2 = _widened(y1, y2, int((x2 - x1) / wanted), mask_image.height)
        else:
            x1, x2 = _widened(x1, x2, int((y2 - y1) * wanted), mask_image.width)
        return x1, y1, x2, y2

    @checks_arguments
    def apply_overlay(
        self, mask: Image.Image, init_image: Image.Image, image: Image.Image, crop_coords: Box | None = None
    ) -> Image.Image:
        """``init_image`` where ``mask`` is black, ``image`` where it is white: PIL pictures, the result in RGB.

        Args:
            crop_coords: where in ``init_image`` the ``image`` belongs, see :meth:`get_crop_region`.
        """
        from PIL import ImageOps

        if mask.size != init_image.size:
            raise InputError(f"`mask` is {mask.size} pixels and `init_image` {init_image.size}. Make them of one size.")
        if crop_coords is not None:
            x1, y1, x2, y2 = crop_coords
            whole = Image.new("RGB", init_image.size)
            whole.paste(self.resize(image, y2 - y1, x2 - x1, "crop"), (x1, y1))
            image = whole
        kept = Image.new("RGBa", init_image.size)  # with premultiplied alpha, so that soft masks blend without a rim
        kept.paste(
            init_image.convert("RGBA").convert("RGBa"),
            mask=ImageOps.invert(read_pictures("mask", mask, 1).convert("L")),
        )
        result = image.convert("RGBA")
        result.alpha_composite(kept.convert("RGBA"))
        return result.convert("RGB")

    @staticmethod
    def _check_resizing(images, resize_mode, crops_coords):
        if (resize_mode != "default" or crops_coords is not None) and not isinstance(images[0], Image.Image):
            raise InputError("`resize_mode` and `crops_coords` are for PIL pictures. Convert the array, or leave them.")

    def _to_tensor(self, images: Any, height: int | None, width: int | None, resize_mode: str) -> paddle.Tensor:
        if isinstance(images[0], Image.Image):
            images = [
                np.asarray(picture, "float32") / 255.0
                for picture in self._prepare_pil(images, height, width, resize_mode)
            ]
            images = [array if array.ndim == 3 else array[..., None] for array in images]
            if len({array.shape for array in images}) > 1:
                raise InputError("The pictures of `image` differ in size or mode. Resize and convert them.")
        if isinstance(images[0], paddle.Tensor):
            return paddle.concat(images) if images[0].ndim == 4 else paddle.stack(images)
        array = np.concatenate(images) if images[0].ndim == 4 else np.stack(images)
        return paddle.to_tensor(np.ascontiguousarray(array.transpose(0, 3, 1, 2)).astype("float32"))

    def _prepare_pil(self, pictures, height, width, resize_mode):
        if self.config.do_resize:
            height, width = self._target_size(pictures[0].height, pictures[0].width, height, width)
            pictures = [self.resize(picture, height, width, resize_mode) for picture in pictures]
        mode = "RGB" if self.config.do_convert_rgb else "L" if self.config.do_convert_grayscale else None
        return [picture.convert(mode) for picture in pictures] if mode else pictures

    def _resize_tensor(self, pixels, height, width):
        size = self._target_size(pixels.shape[2], pixels.shape[3], height, width)
        return pixels if list(size) == pixels.shape[2:] else F.interpolate(pixels, size=size, mode="nearest")

    def _target_size(self, own_height, own_width, height, width):
        factor = self.config.vae_scale_factor
        size = tuple(n - n % factor for n in (height or own_height, width or own_width))
        if 0 in size:
            raise InputError(
                f"`image` would have {own_width} x {own_height} pixels, less than the {factor} of one latent. Pass "
                "height and width, or a larger picture."
            )
        return size

    @staticmethod
    @checks_arguments
    def normalize(pixels: paddle.Tensor) -> paddle.Tensor:
        """[0, 1] -> [-1, 1]."""
        return 2.0 * pixels - 1.0

    @staticmethod
    @checks_arguments
    def denormalize(pixels: paddle.Tensor) -> paddle.Tensor:
        """[-1, 1] -> [0, 1], with what lies outside cut off."""
        if pixels.place.is_cpu_place() and pixels.dtype == paddle.float16:  # Paddle has no such kernel
            pixels = pixels.astype("float32")
        return (pixels * 0.5 + 0.5).clip(0, 1)

    @staticmethod
    @checks_arguments
    def pil_to_numpy(images: Image.Image | list[Image.Image]) -> np.ndarray:
        """PIL pictures of one size -> [B, H, W, c] float32 in [0, 1]."""
        pictures = read_pictures("images", images if isinstance(images, list) else [images], None)
        arrays = [np.asarray(picture, "float32") / 255.0 for picture in pictures]
        return np.stack([array if array.ndim == 3 else array[..., None] for array in arrays])

    @staticmethod
    @checks_arguments
    def numpy_to_pt(images: Array) -> paddle.Tensor:
        """[B, H, W, c] (or grey [B, H, W]) -> tensor [B, c, H, W]."""
        images = images if images.ndim == 4 else images[..., None]
        return paddle.to_tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    @staticmethod
    @checks_arguments
    def pt_to_numpy(images: Tensor) -> np.ndarray:
        """Tensor [B, c, H, W] -> [B, H, W, c] float32."""
        return images.transpose([0, 2, 3, 1]).astype("float32").numpy()

    numpy_to_pd = numpy_to_pt  # ppdiffusers' names
    pd_to_numpy = pt_to_numpy

    @staticmethod
    @checks_arguments
    def numpy_to_pil(array: Array) -> list[Image.Image]:
        """[B, H, W, 3] (or 1 channel: grey) in [0, 1] -> list of B PIL pictures, rounded to the nearest of 256."""
        return _to_pil(array)


def _to_pil(array):
    pixels = (array * 255).round().astype("uint8")
    return [Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row) for row in pixels]


def _filter(name):
    return getattr(Image.Resampling, name.upper())


def _centred(picture, width, height, fill):
    """``picture`` in the middle of width x height pixels: cut off, or, if ``fill``, with its edges repeated."""
    result = Image.new("RGB", (width, height))
    left, top = width // 2 - picture.width // 2, height // 2 - picture.height // 2
    result.paste(picture, box=(left, top))
    if fill:
        right, bottom = width - left - picture.width, height - top - picture.height
        w, h = picture.size
        # what is resized from a strip without height (or width) is the edge
        for size, strip, at in (
            ((width, top), (0, 0, w, 0), (0, 0)),
            ((width, bottom), (0, h, w, h), (0, height - bottom)),
            ((left, height), (0, 0, 0, h), (0, 0)),
            ((right, height), (w, 0, w, h), (width - right, 0)),
        ):
            if min(size) > 0:
                result.paste(picture.resize(size, box=strip), box=at)
    return result


def _widened(start, end, length, size):
    """The span [start, end) made ``length`` long around its middle, moved into [0, size), cut off if it must be."""
    more = length - (end - start)
    start -= more // 2
    end += more - more // 2
    if end >= size:
        start, end = start - (end - size), size
    if start < 0:
        start, end = 0, end - start
    return start, min(end, size)


class SD3CannyImageProcessor(VaeImageProcessor):
    """Control pictures as Stability AI's canny ControlNet for SD3.5-large was trained with them: pixels x in [0, 1]
    become 127.5 x + 0.5 (Stability-AI/sd3.5, ``sd3_infer.py``; diffusers' documentation has the same class).

    Args:
        **options: those of :class:`VaeImageProcessor`, but ``do_normalize``.
    """

    def __init__(self, **options: Any):
        super().__init__(**{**options, "do_normalize": False})

    @checks_arguments
    def preprocess(self, image: Pictures, *args: Any, **options: Any) -> paddle.Tensor:
        """As :meth:`VaeImageProcessor.preprocess`, in [0.5, 128]."""
        return super().preprocess(image, *args, **options) * (255 * 0.5) + 0.5


def mask_processor(vae_scale_factor: int) -> VaeImageProcessor:
    """The processor of masks: white and black of any kind -> [B, 1, H, W] of 1 and 0."""
    return VaeImageProcessor(
        vae_scale_factor=vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
