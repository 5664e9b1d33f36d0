"""What every scheduler can do: load, save, and the shape of what ``step`` returns."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import paddle

from ..configuration_utils import ConfigMixin, naming
from ..outputs import BaseOutput
from ..utils.elsewhere import SCHEDULERS, NoAttributeError
from ..utils.hub import resolve_checkpoint
from ..utils.keywords import LOADING, SAVING, takes_keywords_of
from ..utils.types import PathLike

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class SchedulerOutput(BaseOutput):
    """What ``step`` returns.

    Attributes:
        prev_sample: the sample one step nearer to the picture, the next input of the model.
    """

    prev_sample: paddle.Tensor


class SchedulerMixin(ConfigMixin):
    """Loads and saves a scheduler.

    ``from_config(other.config)`` takes the configuration of any scheduler whose keys this class has too. A key that
    only the other one has is a ConfigError here, where diffusers would keep it unused: pass the shared keys alone.
    """

    config_name = "scheduler_config.json"
    _compatibles: tuple[type[SchedulerMixin], ...] = ()

    def __getattr__(self, name: str) -> Any:
        raise NoAttributeError(type(self), name, SCHEDULERS)

    @property
    def compatibles(self) -> list[type[SchedulerMixin]]:
        """Scheduler classes of ppsd3 that can be made from this one's configuration; the first is its own."""
        return [type(self), *self._compatibles]

    @classmethod
    @takes_keywords_of(LOADING)
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike,
        subfolder: str | None = None,
        cache_dir: PathLike | None = None,
        revision: str | None = None,
        local_files_only: bool | None = None,
        token: str | None = None,
        force_download: bool = False,
        **overrides: Any,
    ) -> Self:
        """Makes the scheduler that ``scheduler_config.json`` describes.

        Args:
            pretrained_model_name_or_path: a directory, a bundled name or a hub id.
            subfolder: where in it the file is; ``"scheduler"`` in a pipeline's directory.
            cache_dir, revision, local_files_only, token, force_download: for a hub id, as in
                ``utils.hub.resolve_checkpoint``.
            **overrides: configuration keys that replace the file's, e.g. ``shift=1.0``; and keywords of other
                libraries, see :mod:`ppsd3.utils.keywords`.

        Raises:
            CheckpointNotFoundError: no such directory, name or file.
            ConfigError: the file or an override has a key that the class does not know.
            InputError: a keyword that is not done here.
        """
        directory = resolve_checkpoint(
            pretrained_model_name_or_path,
            subfolder=subfolder or "",
            cache_dir=cache_dir,
            revision=revision,
            local_files_only=local_files_only,
            token=token,
            force_download=force_download,
        )
        directory = os.path.join(directory, subfolder or "")
        with naming(os.path.join(directory, cls.config_name)):
            return cls.from_config(cls.load_config(os.path.abspath(directory)), **overrides)

    @takes_keywords_of(SAVING, also=())
    def save_pretrained(self, save_directory: PathLike, **others: Any) -> None:
        """Writes ``save_directory/scheduler_config.json``, which diffusers reads too; ``others`` are keywords of other
        libraries, see :mod:`ppsd3.utils.keywords`."""
        self.save_config(save_directory)
