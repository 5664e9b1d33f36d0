"""What the loaders' mixins expect of the pipeline that they are mixed into."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..models import SD3Transformer2DModel
    from ..transformers import SiglipImageProcessor, SiglipVisionModel
    from ..utils.paddle_internals import Place
    from ..utils.types import Dtype
    from .on_demand import OnDemandNetwork


class Residency(Protocol):
    """Where a pipeline's networks are."""

    @property
    def place(self) -> Place | None:
        """Where offloaded networks compute; None without offloading."""
        ...

    def take(self, network: Any) -> None:
        """Moves a network, or what has been added to it, to where it is while it does not compute."""
        ...


class PipelineHost:
    """Base of the mixins: the components and methods of a pipeline that they use.

    Text encoders and tokenizers are asked for by name, by ``getattr``. The methods are those of
    :class:`~ppsd3.pipelines.DiffusionPipeline`.
    """

    transformer: SD3Transformer2DModel | OnDemandNetwork | None
    image_encoder: SiglipVisionModel | OnDemandNetwork | None
    feature_extractor: SiglipImageProcessor | None
    _residency: Residency
    _settings: tuple[str, ...]  # arguments of __init__ that are not components
    _optional_components: tuple[str, ...]

    if TYPE_CHECKING:

        def __init__(self, **components: Any) -> None: ...

        def using(self, name: str) -> AbstractContextManager[Any]: ...

        def load_textual_inversion(
            self, pretrained_model_name_or_path: Any, token: Any = None, tokenizer: Any = None, **options: Any
        ) -> None: ...

        def _tell(self, name: str, method: str, **options: Any) -> None: ...

        def _read_more(self, class_: type[Any], directory: str, subfolder: str) -> Any: ...

        @classmethod
        def _component_signature(cls) -> list[str]: ...

        @classmethod
        def _storage_dtypes(cls, storage_dtype: Any, networks: list[str]) -> dict[str, Dtype]: ...


def components_taken(pipeline: type[Any]) -> list[str] | None:
    """Names that a class's ``**components`` may have; None for the base class, which can be any pipeline."""
    names = pipeline._component_signature()
    return [*names, *pipeline._settings] if names else None
