"""Pictures as people hold them -> what SigLIP's image tower reads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import paddle

from ...configuration_utils import ConfigMixin, naming, register_to_config
from ...outputs import BaseOutput
from ...utils.checking import Range, checks_arguments
from ...utils.config_types import Pixels, Positive
from ...utils.errors import ConfigError, InputError
from ...utils.hub import resolve_checkpoint
from ...utils.images import read_pictures
from ...utils.keywords import HUB_KEYWORDS, LOADING, SAVING, takes_keywords_of
from ...utils.types import PathLike

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self

# What transformers writes beside the arguments; None, or without effect on this processor.
_TRANSFORMERS_KEYS = (
    *("_processor_class", "_valid_processor_keys", "image_processor_type", "feature_extractor_type", "processor_class"),
    *("crop_size", "data_format", "default_to_square", "device", "disable_grouping", "do_center_crop", "do_pad"),
    *("image_seq_length", "input_data_format", "pad_size", "return_tensors"),
)


@dataclasses.dataclass
class SiglipImageProcessorOutput(BaseOutput):
    """``pixel_values``: Tensor (or array) [B, 3, H, W] fp32."""

    pixel_values: Any


class SiglipImageProcessor(ConfigMixin):
    """PIL pictures or arrays to ``pixel_values``, equal to those of transformers' class on PIL pictures.

    Args:
        do_resize: stretch to ``size``.
        size: ``{"height": ..., "width": ...}`` in pixels. Default 224 each; the IP-adapter's tower has 384.
        resample: PIL's number of the filter. Default 3, bicubic.
        do_rescale, rescale_factor: what the levels 0 to 255 are multiplied by. Default 1 / 255.
        do_normalize, image_mean, image_std: then ``(x - mean) / std``. Default 0.5 each:
            to [-1, 1].
        do_convert_rgb: convert pictures of other modes to RGB; what is transparent becomes white.

    Raises:
        ConfigError: ``size`` has no height and width, or the file asks to crop.
    """

    config_name = "preprocessor_config.json"
    ignored_config_keys = _TRANSFORMERS_KEYS

    @register_to_config
    def __init__(
        self,
        do_resize: bool = True,
        size: Mapping[str, Pixels] | None = None,
        resample: Annotated[int, Range(0, 5)] = 3,
        do_rescale: bool = True,
        rescale_factor: Positive = 1 / 255,
        do_normalize: bool = True,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[Positive] = (0.5, 0.5, 0.5),
        do_convert_rgb: bool = True,
    ) -> None:
        size = {"height": 224, "width": 224} if size is None else size
        if not {"height", "width"} <= set(size):
            raise ConfigError(f"size is {size!r}; a SigLIP processor takes {{'height': ..., 'width': ...}} in pixels.")
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            if len(values) != 3:
                raise ConfigError(f"{name} has {len(values)} values; it takes one for each of red, green and blue.")
        self.register_to_config(size=dict(size))

    @classmethod
    def extract_init_arguments(cls, config: Mapping[str, Any], source: str = "the configuration") -> dict[str, Any]:
        if config.get("do_center_crop") or config.get("do_pad"):
            raise ConfigError(f"{source} asks to crop or pad, which no SigLIP does. Use the tower's own processor.")
        given = {name: value for name, value in config.items() if value is not None}
        return super().extract_init_arguments(given, source)

    @classmethod
    @takes_keywords_of(LOADING, also=lambda cls: (*HUB_KEYWORDS, *cls._known_keys()))
    def from_pretrained(
        cls, pretrained_model_name_or_path: PathLike, subfolder: str | None = None, **options: Any
    ) -> Self:
        """Reads ``preprocessor_config.json`` of a directory (or its ``subfolder``) or a hub id.

        Args:
            **options: ``cache_dir``, ``revision``, ``local_files_only``, ``token``, ``force_download``; entries that
                replace those of the file, e.g. ``size``; and keywords of other libraries, see
                :mod:`ppsd3.utils.keywords`.

        Raises:
            CheckpointNotFoundError: no such directory or file.
            ConfigError: an unknown key, or a value that cannot be used.
        """
        hub = {name: options.pop(name) for name in HUB_KEYWORDS if name in options}
        directory = resolve_checkpoint(pretrained_model_name_or_path, subfolder=subfolder or "", **hub)
        directory = os.path.join(directory, subfolder) if subfolder else directory
        with naming(os.path.join(directory, cls.config_name)):
            return cls.from_config(cls.load_config(os.path.abspath(directory)), **options)

    @takes_keywords_of(SAVING, also=())
    def save_pretrained(self, save_directory: PathLike, **others: Any) -> None:
        """Writes ``preprocessor_config.json`` (into a directory that is made if missing) as transformers reads it;
        ``others`` are keywords of other libraries, see :mod:`ppsd3.utils.keywords`."""
        self.save_config(save_directory)

    def to_json_dict(self) -> dict[str, Any]:
        """The configuration as it is saved."""
        return {**super().to_json_dict(), "image_processor_type": type(self).__name__}

    @checks_arguments
    def __call__(self, images: Any, return_tensors: str = "pd") -> SiglipImageProcessorOutput:
        """Prepares pictures.

        Args:
            images: PIL pictures, or arrays [H, W, 3] or [B, H, W, 3], one or a list; which values and modes, says
                :mod:`ppsd3.utils.images`. Arrays are rounded to 8 bits.
            return_tensors: ``"pd"`` for a Tensor (default) or ``"np"`` for an array.

        Returns:
            SiglipImageProcessorOutput

        Raises:
            InputError: another type or shape, no picture, levels that are no pictures', or pictures of different sizes
                or modes if they are not resized or converted.
        """
        if return_tensors not in ("pd", "np"):
            raise InputError(f"return_tensors is {return_tensors!r}; it can be 'pd' (a Paddle tensor) or 'np'.")
        channels = 3 if self.config.do_convert_rgb else None
        pixels = [self._prepared(picture) for picture in as_pictures(images, channels)]
        if len({array.shape for array in pixels}) > 1:
            raise InputError(f"The pictures differ in size: {sorted({array.shape[:2] for array in pixels})}. Resize.")
        pixels = np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2))
        return SiglipImageProcessorOutput(paddle.to_tensor(pixels) if return_tensors == "pd" else pixels)

    def _prepared(self, picture):
        """PIL picture -> [H, W, 3] fp32."""
        config = self.config
        if config.do_resize:
            picture = picture.resize((config.size["width"], config.size["height"]), resample=config.resample)
        pixels = np.asarray(picture)
        if pixels.ndim != 3 or pixels.shape[-1] != len(config.image_mean):
            raise InputError(
                f"A picture has the mode {picture.mode}; this processor takes {len(config.image_mean)} channels. "
                "Convert it to RGB."
            )
        if config.do_rescale:
            pixels = (pixels.astype("float64") * config.rescale_factor).astype("float32")
        if config.do_normalize:
            mean, std = (np.asarray(values, "float32") for values in (config.image_mean, config.image_std))
            pixels = (pixels.astype("float32") - mean) / std
        return pixels.astype("float32")


def as_pictures(images: Any, channels: int | None = 3, name: str = "images") -> list[Image.Image]:
    """PIL pictures of ``images``: one, an array, or a list of these.

    Args:
        channels: 3 converts to RGB, None leaves grey pictures as they are.
        name: of the argument, for errors.

    Raises:
        InputError: see ``SiglipImageProcessor.__call__``.
    """
    from PIL import Image

    items = images if isinstance(images, (list, tuple)) and images else [images]
    pictures = []
    for item in [read_pictures(name, item, channels) for item in items]:
        if isinstance(item, paddle.Tensor):
            raise InputError(f"`{name}` is a Tensor; pass PIL pictures or arrays [H, W, 3].")
        if isinstance(item, Image.Image):
            pictures.append(item)
        else:
            levels = (item * 255).round().clip(0, 255).astype("uint8")
            rows = levels if levels.ndim == 4 else levels[None]
            pictures += [Image.fromarray(row if row.shape[-1] == 3 else row[..., 0]) for row in rows]
    return pictures
