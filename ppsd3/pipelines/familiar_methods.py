"""Methods that programs written for diffusers and ppdiffusers call on a pipeline.

What is refused is not here: it is a line in :mod:`ppsd3.utils.elsewhere`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

from ..modeling_utils import AttentionSwitches
from ..utils.checking import checks_arguments
from ..utils.elsewhere import METHODS, NoAttributeError
from ..utils.hub import resolve_checkpoint
from ..utils.keywords import LOADING, takes_keywords_of
from ..utils.types import PathLike
from .image_processor import Array, VaeImageProcessor


class FamiliarMethods(AttentionSwitches):
    """Mixed into the pipelines."""

    name_or_path: str = ""  # what from_pretrained was given

    if TYPE_CHECKING:

        def _tell(self, name: str, method: str, **options: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise NoAttributeError(type(self), name, METHODS)

    def maybe_free_model_hooks(self) -> None:
        """Changes nothing: offloaded networks leave the GPU as soon as they have been used."""

    def fuse_qkv_projections(self) -> None:
        """Computes Q, K and V of the transformer by one product each for image and text."""
        self._tell("transformer", "fuse_qkv_projections")

    def unfuse_qkv_projections(self) -> None:
        """Computes Q, K and V one by one again."""
        self._tell("transformer", "unfuse_qkv_projections")

    @staticmethod
    @checks_arguments
    def numpy_to_pil(images: Array) -> list[Image.Image]:
        """Array [B, H, W, 3] or [H, W, 3] in [0, 1] -> PIL pictures."""
        return VaeImageProcessor.numpy_to_pil(images[None] if images.ndim == 3 else images)

    @classmethod
    @takes_keywords_of(LOADING)
    def download(
        cls,
        pretrained_model_name: PathLike,
        variant: str | None = None,
        cache_dir: PathLike | None = None,
        local_files_only: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        force_download: bool = False,
    ) -> str:
        """Downloads a pipeline's files without loading them, and returns their directory.

        Args:
            pretrained_model_name: a hub id ``"owner/name"``; the arguments are those of ``from_pretrained``.

        Raises:
            CheckpointNotFoundError: no such checkpoint.
        """
        return resolve_checkpoint(
            pretrained_model_name,
            variant=variant,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
            token=token,
            force_download=force_download,
        )
