"""What a Stable Diffusion 3 pipeline returns."""

import dataclasses
from typing import Any

from ...outputs import BaseOutput


@dataclasses.dataclass
class StableDiffusion3PipelineOutput(BaseOutput):
    """``images``: list of B ``PIL.Image.Image``, an array [B, H, W, 3] in [0, 1] (``"np"``), a tensor [B, 3, H, W]
    in [0, 1] (``"pt"``, ``"pd"``), or latents [B, C, H, W] (``"latent"``), after ``output_type``."""

    images: Any = None
