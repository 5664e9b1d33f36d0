"""Which models there are, and the one that is loaded."""

from __future__ import annotations

import dataclasses
import gc
import os
from typing import Any

from ..utils.errors import InputError, PPSD3Error
from ..utils.hub_cache import cached_ids
from ..utils.pipeline_index import PIPELINE_INDEX
from .requests import TASKS

_MOST_ENTRIES = 10_000  # of directories and files that are looked at


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """A model and in which form it is loaded: the options of ``ppsd3 generate`` by their names.

    Args:
        model: directory, hub id, .safetensors file or bundled model.
        lora: ``"FILE:SCALE"``, several are added; another list is put in place without loading the model again.
        controlnet: for the tasks of ControlNets; loaded when one is first asked for.
    """

    model: str = "shapes"
    config: str | None = None
    variant: str | None = None
    dtype: str = "float32"
    device: str | None = None
    quantize: str | None = None
    cache: str | None = None
    on_demand: bool = False
    without_t5: bool = False
    prompt_weighting: bool = False
    scheduler: str | None = None
    lora: tuple[str, ...] = ()
    textual_inversion: tuple[str, ...] = ()
    controlnet: tuple[str, ...] = ()
    canny_8b: bool = False

    @classmethod
    def of(cls, arguments: Any, **changes: Any) -> ModelChoice:
        """What parsed options say."""
        names = [field.name for field in dataclasses.fields(cls)]
        found = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
        lists = {name: tuple(value or ()) for name, value in found.items() if isinstance(getattr(cls, name), tuple)}
        return cls(**{**found, **lists, **changes})

    def settings(self) -> dict[str, Any]:
        """What differs from the defaults, for a PNG; lists as lists."""
        pairs = ((field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self))
        changed = {name: value for name, value, default in pairs if value != default or name == "model"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


class Catalog:
    """The models that may be asked for, by name: the bundled one, what lies below a directory, what is in the cache of
    the hub. Nothing else can be named, so no request reads another file.

    Args:
        default: the model that is used when none is named; it is in the list under its own name.
        directory: pipelines in directories and single files below it are listed by their paths there.
        hub_cache: whether pipelines in the cache of the hub's client are listed by their ids.
    """

    def __init__(self, default: ModelChoice, directory: str | None = None, hub_cache: bool = True):
        self.default, self.directory, self.hub_cache = default, directory, hub_cache

    def names(self) -> list[str]:
        """All names, the default's first. Looks at the disk each time."""
        return list(self._paths())

    def choice(self, name: str | None, **changes: Any) -> ModelChoice:
        """The default's form with the model called ``name``; None for the default's. ``changes`` are fields of
        :class:`ModelChoice`.

        Raises:
            InputError: no such model.
        """
        if name is None:
            return dataclasses.replace(self.default, **changes)
        paths = self._paths()
        if name not in paths:
            raise InputError(f"There is no model of this name. There are: {', '.join(list(paths)[:20])}.")
        path = paths[name]
        own = {} if path == self.default.model else {"config": None, "variant": None, "lora": (), "controlnet": ()}
        return dataclasses.replace(self.default, **{"model": path, **own, **changes})

    def name_of(self, choice: ModelChoice) -> str:
        """The name under which its model is listed."""
        return next((name for name, path in self._paths().items() if path == choice.model), self._default_name())

    def loras(self) -> dict[str, str]:
        """Name -> path of the LoRA files below the directory."""
        return {name: path for name, path in self._files() if _is_lora(path)}

    def _default_name(self):
        model = self.default.model
        return os.path.basename(os.path.abspath(model)) if os.path.exists(model) else model

    def _paths(self):
        paths = {self._default_name(): self.default.model, "shapes": "shapes"}
        if self.directory is not None:
            paths.update({name: path for name, path in self._entries() if os.path.isdir(path)})
            paths.update({name: path for name, path in self._files() if not _is_lora(path)})
        if self.hub_cache:
            paths.update({name: name for name in cached_ids()})
        return paths

    def _files(self):
        return [(name, path) for name, path in self._entries() if path.endswith(".safetensors")]

    def _entries(self):
        """(name, path) of each pipeline's directory, and of each weights file that is in none."""
        found, looked = [], 0
        if self.directory is None:
            return found
        for folder, folders, files in os.walk(self.directory):
            looked += 1 + len(files)
            if looked > _MOST_ENTRIES:
                raise InputError(f"{self.directory} has more than {_MOST_ENTRIES} entries. Name a smaller directory.")
            if PIPELINE_INDEX in files:
                found.append((os.path.relpath(folder, self.directory), folder))
                folders.clear()
                continue
            folders.sort()
            paths = (os.path.join(folder, file) for file in sorted(files) if file.endswith(".safetensors"))
            found += [(os.path.relpath(path, self.directory), path) for path in paths]
        return found


class Models:
    """The one model that is loaded, and a pipeline over it for each task.

    Args:
        load: (choice, quiet) -> pipeline for text to image; by default that of the command line.
    """

    def __init__(self, load: Any = None):
        self._load = load
        self.choice: ModelChoice | None = None
        self._base: Any = None
        self._preview: Any = None
        self._pipelines: dict[tuple[str, str | None], Any] = {}

    def pipeline(self, choice: ModelChoice, task: str, scheduler: str | None = None) -> Any:
        """The pipeline of a task over the model, which is loaded in place of another one.

        Raises:
            PPSD3Error: it cannot be loaded; then none is.
        """
        from .. import pipelines
        from ..cli.options import make_scheduler

        self._become(choice)
        key = task, scheduler
        if key not in self._pipelines:
            parts = {} if scheduler is None else {"scheduler": make_scheduler(scheduler, self._base.scheduler)}
            kind = getattr(pipelines, TASKS[task])
            if task.startswith("control"):
                self._pipelines[key] = self._controlled(kind, choice, parts)
            else:
                self._pipelines[key] = kind.from_pipe(self._base, **parts)
        return self._pipelines[key]

    @property
    def preview(self) -> Any:
        """Small pictures of this model's latents."""
        from ..pipelines.latent_preview import LatentPreview

        if self._preview is None:
            self._preview = LatentPreview.of(self._base)
        return self._preview

    @property
    def side(self) -> int:
        """Pixels of a picture's height and width where a request leaves them out."""
        return 1024 if self._base is None else self._base.default_sample_size * self._base.vae_scale_factor

    def forget(self) -> None:
        """Frees the model."""
        self.choice = self._base = self._preview = None
        self._pipelines.clear()
        gc.collect()

    def _become(self, choice):
        if choice == self.choice:
            return
        same = self.choice is not None and dataclasses.replace(self.choice, lora=choice.lora) == choice
        try:
            if same:
                self._change_loras(choice)
            else:
                from ..cli.options import load_pipeline

                self.forget()
                self._base = (self._load or load_pipeline)(choice, True)
        except Exception:
            self.forget()
            raise
        self.choice = choice

    def _change_loras(self, choice):
        from ..cli.options import load_loras

        if self.choice is not None and self.choice.lora:
            self._base.unload_lora_weights()
        load_loras(self._base, choice.lora)

    def _controlled(self, kind, choice, parts):
        from ..cli.control import load_controlnets
        from ..pipelines import SD3CannyImageProcessor, VaeImageProcessor

        if not choice.controlnet:
            raise InputError("This task needs a ControlNet, and none is chosen. Name one with the model.")
        shared = next((p for (task, _), p in self._pipelines.items() if task.startswith("control")), None)
        nets = load_controlnets(choice) if shared is None else shared.controlnet
        pipe = kind.from_pipe(self._base, controlnet=nets, **parts)
        processor = SD3CannyImageProcessor if choice.canny_8b else VaeImageProcessor
        pipe.control_image_processor = [processor(**pipe.image_processor.config)] * len(choice.controlnet)
        return pipe


def _is_lora(path):
    from ..loaders.recognition import recognize

    try:
        return not recognize(path).is_network
    except PPSD3Error:
        return False
