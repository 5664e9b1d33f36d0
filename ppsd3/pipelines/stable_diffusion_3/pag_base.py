"""What the pipelines with perturbed-attention guidance have in common."""

from __future__ import annotations

import dataclasses

from ...utils.checking import checks_arguments
from .arguments import PAGImageToImageArguments, PAGTextToImageArguments
from .base import ImageEncoderComponents, StableDiffusion3Base
from .guidance import Guidance, PerturbedAttentionGuidance


@dataclasses.dataclass(eq=False, repr=False)
class _Layers:
    pag_applied_layers: int | str | list[int | str] = "blocks.1"


@dataclasses.dataclass(eq=False, repr=False)
class StableDiffusion3PAGBase(_Layers, ImageEncoderComponents, StableDiffusion3Base):
    """A :class:`StableDiffusion3Base` whose calls take ``pag_scale``: for ``guidance=PerturbedAttentionGuidance(...)``.

    Attributes:
        pag_applied_layers: the layers, see ``PerturbedAttentionGuidance``. Saved with the pipeline.
    """

    _settings = ("pag_applied_layers",)

    @checks_arguments
    def set_pag_applied_layers(self, pag_applied_layers: int | str | list[int | str]) -> None:
        """Applies the guidance to these layers from the next call on."""
        self.pag_applied_layers = pag_applied_layers

    def _guidance_for(self, arguments: PAGTextToImageArguments | PAGImageToImageArguments, scale: float) -> Guidance:  # type: ignore[override]
        return PerturbedAttentionGuidance(
            scale, self.pag_applied_layers, arguments.pag_scale, arguments.pag_adaptive_scale
        )
